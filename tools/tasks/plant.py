"""A simulated plant: a ventilated climate chamber that works through a recipe, watched by three sensors.

Air fills a chamber of volume V. A fan blows ambient air in, a damper lets it out, a heater and a steam valve
keep the set points of the recipe's phase, each by switching on and off with hysteresis. Explicit Euler,
``DT`` a step:

    C dT/dt      = P_heater + h_w (T_wall - T) + q_in c_p (T_amb - T)                      J/s
    C_w dT_w/dt  = h_w (T - T_wall) + h_amb (T_amb - T_wall)                               J/s
    dm_air/dt    = q_in - q_out,                      q_out = k (p - p_amb)                kg/s
    dm_vap/dt    = q_in w_amb + steam - q_out m_vap / m_air - condensation                 kg/s
    p            = (m_air R_air + m_vap R_vap) T / V                                       Pa
    humidity     = 100 p_vap / p_sat(T),              p_vap = m_vap R_vap T / V            %
    p_sat(T)     = 610.94 exp(17.625 T / (T + 243.04)), T in Celsius                       Pa (Magnus formula)

The fan and the temperature and humidity sensors lag behind (first order), and every sensor adds noise. What
is normal also drifts: ambient temperature and pressure and each sensor's zero wander (Ornstein-Uhlenbeck
processes of an hour or so), and the fan's flow fluctuates. The recipe's phases follow one another for random
times: those are the changes of regime. A fault that is injected begins and ends somewhere, and is either of
one sensor or of the plant itself.

Everything random comes from the seed. Until its fault begins, a signal is that of the same seed without a
fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mamba_export.errors import MambaExportError

CHANNELS = ("temperature_C", "pressure_kPa", "humidity_percent")
"""Names and units of the sensors, in the order of every array here."""

DT = 1.0
"""Seconds between two samples, and of a step of the simulation."""

VOLUME = 2.0  # m3
R_AIR, R_VAPOUR = 287.05, 461.5  # J/(kg K)
AIR_HEAT = 1006.0  # c_p, J/(kg K)
HEAT_CAPACITY, WALL_CAPACITY = 6.0e3, 6.0e4  # C, C_w, J/K
WALL_TRANSFER, AMBIENT_TRANSFER = 40.0, 15.0  # h_w, h_amb, W/K
DAMPER = 5.0e-6  # k, kg/(s Pa)
HEATER, STEAM = 3.0e3, 8.0e-4  # W, kg/s
CONDENSATION_SECONDS = 5.0  # in which vapour above saturation falls
HYSTERESIS = (1.0, 2.0)  # of the thermostat, K, and of the hygrostat, %
NOISE = np.array([0.05, 0.01, 0.3])  # standard deviation of the sensors, in their units
LAG_SECONDS = np.array([3.0, 0.0, 8.0])
FAN_SECONDS = 10.0  # in which the fan follows a change of its flow
KELVIN = 273.15
WARM_UP = 600
"""Steps before the first sample, in which the plant forgets how it started."""


@dataclass(frozen=True)
class Phase:
    """A part of the recipe: set points of temperature (C) and humidity (%), and the fan's flow (kg/s)."""

    name: str
    temperature: float
    humidity: float
    flow: float


PHASES = (
    Phase("idle", 25.0, 0.0, 2.0e-3),
    Phase("heat", 55.0, 0.0, 2.0e-3),
    Phase("steam", 55.0, 60.0, 4.0e-3),
    Phase("dry", 65.0, 0.0, 1.0e-2),
    Phase("cool", 25.0, 0.0, 8.0e-3),
)
"""The recipe, which begins again after its last phase."""
PHASE_SECONDS = (90.0, 360.0)
"""A phase lasts a random time between these."""


@dataclass(frozen=True)
class Wander:
    """An Ornstein-Uhlenbeck process: standard deviation and time constant in seconds."""

    deviation: float
    seconds: float

    def start(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Values of the stationary process."""
        return self.deviation * rng.standard_normal(shape)

    def step(self, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The values ``DT`` later."""
        keep = np.exp(-DT / self.seconds)
        return keep * value + self.deviation * np.sqrt(1 - keep**2) * rng.standard_normal(
            value.shape
        )


AMBIENT_TEMPERATURE, AMBIENT_PRESSURE = 20.0, 101.3e3  # C, Pa
AMBIENT_MOISTURE = 7.0e-3  # w_amb, kg of vapour a kg of air
AMBIENT_WANDERS = (Wander(2.0, 3600.0), Wander(300.0, 3600.0))
FLOW_WANDER = Wander(0.04, 20.0)  # relative
ZERO_WANDER = Wander(2.0, 5000.0)  # of each sensor, times its noise


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Args:
        about: what happens.
        seconds: shortest and longest time that it lasts.
        of_sensor: whether it is of one sensor, drawn at random, or of the plant.
        size: smallest and largest size: of a sensor's fault times its noise, of the plant's a factor.
    """

    about: str
    seconds: tuple[int, int]
    of_sensor: bool
    size: tuple[float, float]


FAULTS = {
    "spike": Fault("one sample is off", (1, 1), True, (8.0, 20.0)),
    "stuck": Fault("a sensor repeats its last value", (90, 180), True, (0.0, 0.0)),
    "bias": Fault("a sensor's zero jumps", (90, 180), True, (5.0, 15.0)),
    "drift": Fault("a sensor's zero runs away, by the size in a minute", (90, 180), True, (5.0, 15.0)),
    "noise": Fault("a sensor's noise is so many times as strong", (90, 180), True, (3.0, 6.0)),
    "heater": Fault("the heater gives this share of its power", (90, 180), False, (0.2, 0.5)),
    "leak": Fault("the damper lets through so many times as much", (90, 180), False, (1.3, 2.0)),
    "steam": Fault("the steam valve stays open, this far", (90, 180), False, (0.3, 1.0)),
}  # fmt: skip
"""Kinds of faults, by name."""
LEAST_WITH_FAULT = 512
"""Samples of a signal that has a fault."""


@dataclass(frozen=True)
class Signal:
    """What the sensors show of several plants.

    Args:
        readings: (plants, length, 3) fp32, in the units of ``CHANNELS``.
        phase: (plants, length), index into ``PHASES``.
        faulty: (plants, length), whether the fault is there.
    """

    readings: np.ndarray
    phase: np.ndarray
    faulty: np.ndarray


def simulate(plants: int, length: int, seed: int, fault: str | None = None) -> Signal:
    """Run several plants, each for ``length`` samples.

    Args:
        plants, length: at least 1 each; with a fault ``LEAST_WITH_FAULT`` samples, and the fault begins in the
            middle half of them.
        seed: of everything random.
        fault: a name of ``FAULTS``, which each plant has once; None for none.

    Raises:
        MambaExportError: there is no such fault, or a number is too small.
    """
    if fault is not None and fault not in FAULTS:
        raise MambaExportError(f"there is no fault {fault}: give one of {', '.join(FAULTS)}")
    if min(plants, length) < 1:
        raise MambaExportError(f"{plants} plants of {length} samples: at least 1 of each is needed")
    if fault is not None and length < LEAST_WITH_FAULT:
        raise MambaExportError(
            f"{length} samples are too few: with a fault {LEAST_WITH_FAULT} samples are needed"
        )
    rng, fault_rng = (np.random.default_rng([seed, part]) for part in range(2))
    injected = None if fault is None else _Injected(fault, plants, length, fault_rng)
    plant = _Plant(plants, rng)
    for _ in range(WARM_UP):
        plant.step(None, 0)
    readings = np.empty((plants, length, len(CHANNELS)), np.float32)
    phase = np.empty((plants, length), np.int8)
    faulty = np.zeros((plants, length), bool)
    for index in range(length):
        readings[:, index] = plant.step(injected, index)
        phase[:, index] = plant.phase
        if injected is not None:
            faulty[:, index] = injected.at(index)
    return Signal(readings, phase, faulty)


class _Injected:
    """The faults of several plants: where they begin and end, which sensor, how large."""

    def __init__(self, name: str, plants: int, length: int, rng: np.random.Generator) -> None:
        self.name = name
        self.kind = kind = FAULTS[name]
        self.begin = rng.integers(length // 4, 3 * length // 4, plants)
        self.end = self.begin + rng.integers(kind.seconds[0], kind.seconds[1] + 1, plants)
        self.size = rng.uniform(*kind.size, plants)
        self.sign = rng.choice([-1.0, 1.0], plants)
        self.sensor = np.eye(len(CHANNELS), dtype=bool)[rng.integers(0, len(CHANNELS), plants)]
        self.held = np.zeros((plants, len(CHANNELS)))

    def at(self, index: int) -> np.ndarray:
        """(plants,) whether the fault is there at a sample."""
        return (self.begin <= index) & (index < self.end)

    def factor(self, name: str, index: int) -> np.ndarray | float:
        """Of a part of the plant: 1 where it is sound."""
        return np.where(self.at(index), self.size, 1.0) if self.name == name else 1.0

    def show(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        """What the sensors show: clean values and noise, both (plants, 3)."""
        there = self.at(index)[:, None] & self.sensor
        size, sign = self.size[:, None], self.sign[:, None]
        shown = clean + noise
        if self.name in ("spike", "bias"):
            shown = np.where(there, shown + sign * size * NOISE, shown)
        elif self.name == "drift":
            minutes = (index - self.begin + 1)[:, None] * DT / 60
            shown = np.where(there, shown + sign * size * NOISE * minutes, shown)
        elif self.name == "noise":
            shown = np.where(there, clean + size * noise, shown)
        elif self.name == "stuck":
            shown = np.where(there, self.held, shown)
        self.held = shown
        return shown


class _Plant:
    """The state of several plants."""

    def __init__(self, plants: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.phase = rng.integers(0, len(PHASES), plants)
        self._left = rng.uniform(0, PHASE_SECONDS[1], plants)
        self._temperature = np.full(plants, 25.0)
        self._wall = np.full(plants, 25.0)
        self._air = np.full(plants, AMBIENT_PRESSURE * VOLUME / (R_AIR * (25.0 + KELVIN)))
        self._vapour = AMBIENT_MOISTURE * self._air
        self._heats = np.zeros(plants, bool)
        self._steams = np.zeros(plants, bool)
        self._ambient = [wander.start(rng, (plants,)) for wander in AMBIENT_WANDERS]
        self._flow = np.full(plants, PHASES[0].flow)
        self._flutter = FLOW_WANDER.start(rng, (plants,))
        self._zero = ZERO_WANDER.start(rng, (plants, len(CHANNELS)))
        self._lagged = self._true()

    def step(self, injected: _Injected | None, index: int) -> np.ndarray:
        """Go on by ``DT``; (plants, 3) what the sensors show then."""
        rng = self.rng
        self._left -= DT
        durations = rng.uniform(*PHASE_SECONDS, self._left.shape)
        over = self._left <= 0
        self.phase = np.where(over, (self.phase + 1) % len(PHASES), self.phase)
        self._left = np.where(over, durations, self._left)
        self._ambient = [
            wander.step(value, rng)
            for wander, value in zip(AMBIENT_WANDERS, self._ambient, strict=True)
        ]
        self._flutter = FLOW_WANDER.step(self._flutter, rng)
        self._zero = ZERO_WANDER.step(self._zero, rng)
        self._move(injected, index)
        true = self._true()
        self._lagged += (true - self._lagged) * DT / (DT + LAG_SECONDS)
        clean = self._lagged + self._zero * NOISE
        noise = NOISE * rng.standard_normal(clean.shape)
        return clean + noise if injected is None else injected.show(clean, noise, index)

    def _move(self, injected: _Injected | None, index: int) -> None:
        def factor(name: str) -> np.ndarray | float:
            return 1.0 if injected is None else injected.factor(name, index)

        wanted, humid, flow = (
            np.array([getattr(phase, name) for phase in PHASES])[self.phase]
            for name in ("temperature", "humidity", "flow")
        )
        temperature, pressure, humidity = self._true().T
        self._heats = _switched(self._heats, temperature, wanted, HYSTERESIS[0])
        self._steams = _switched(self._steams, humidity, humid, HYSTERESIS[1])
        ambient = AMBIENT_TEMPERATURE + self._ambient[0]
        self._flow = self._flow + (flow - self._flow) * DT / (DT + FAN_SECONDS)
        inward = self._flow * (1 + self._flutter)
        beyond = 1e3 * pressure - AMBIENT_PRESSURE - self._ambient[1]
        outward = DAMPER * factor("leak") * beyond
        steam = STEAM * np.where(self._steams, 1.0, 0.0)
        if injected is not None and injected.name == "steam":
            open_by = STEAM * injected.size
            steam = np.where(injected.at(index), np.maximum(steam, open_by), steam)
        saturated = saturation_pressure(temperature) * VOLUME / (R_VAPOUR * (temperature + KELVIN))
        condensed = np.maximum(self._vapour - saturated, 0) / CONDENSATION_SECONDS
        heat = (
            HEATER * factor("heater") * self._heats
            + WALL_TRANSFER * (self._wall - temperature)
            + inward * AIR_HEAT * (ambient - temperature)
        )
        through_wall = WALL_TRANSFER * (temperature - self._wall) + AMBIENT_TRANSFER * (
            ambient - self._wall
        )
        vapour = inward * AMBIENT_MOISTURE + steam - outward * self._vapour / self._air - condensed
        self._temperature = self._temperature + DT * heat / HEAT_CAPACITY
        self._wall = self._wall + DT * through_wall / WALL_CAPACITY
        self._air = self._air + DT * (inward - outward)
        self._vapour = np.maximum(self._vapour + DT * vapour, 1e-6)

    def _true(self) -> np.ndarray:
        """(plants, 3) temperature, pressure and humidity as they are."""
        kelvin = self._temperature + KELVIN
        vapour = self._vapour * R_VAPOUR * kelvin / VOLUME
        pressure = self._air * R_AIR * kelvin / VOLUME + vapour
        humidity = 100 * vapour / saturation_pressure(self._temperature)
        return np.stack([self._temperature, pressure / 1e3, humidity], axis=1)


def saturation_pressure(celsius: np.ndarray) -> np.ndarray:
    """Pressure of saturated water vapour, Pa (Magnus formula, constants of Alduchov and Eskridge 1996)."""
    return np.asarray(610.94 * np.exp(17.625 * celsius / (celsius + 243.04)))


def _switched(on: np.ndarray, value: np.ndarray, wanted: np.ndarray, band: float) -> np.ndarray:
    """A switch with hysteresis: on below the band around what is wanted, off above it."""
    return np.where(value < wanted - band, True, np.where(value > wanted + band, False, on))
