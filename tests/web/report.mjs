// Opens the report in headless Chromium, at each width and in each scheme, and prints what stands out there as JSON.
//
//     node report.mjs '{"playwright": FILE, "chromium": FILE, "looks": [[URL, 390, "dark"]], "pictures": FOLDER}'
//
// "colours" names custom properties that are told; with "pictures" the whole page is drawn into WIDTH-SCHEME.png.

import { tmpdir } from "node:os";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";

const given = JSON.parse(process.argv[2]);
const { chromium } = await import(given.playwright);
const profile = await mkdtemp(join(tmpdir(), "mamba-report-"));
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
flags.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: given.chromium,
  args: flags,
});
try {
  const seen = [];
  for (const one of given.looks) seen.push(await look(...one));
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
  await rm(profile, { recursive: true, force: true });
}

async function look(url, width, colorScheme) {
  const page = await browser.newPage();
  const errors = [];
  const fetched = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("request", (request) => fetched.push(request.url()));
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme });
  await page.goto(url);
  const found = await page.evaluate(measure, given.colours ?? []);
  if (given.pictures) {
    const path = join(given.pictures, `${width}-${colorScheme}.png`);
    await page.screenshot({ path, fullPage: true });
  }
  await page.close();
  return { errors, fetched: fetched.filter((one) => !one.startsWith("data:")), ...found };
}

function measure(names) {
  const root = document.scrollingElement;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const outside = [];
  const overlapping = [];
  for (const svg of document.querySelectorAll("figure > svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((text) => ({
      name: `${svg.parentElement.id}: ${text.textContent}`,
      box: text.getBoundingClientRect(),
    }));
    for (const { name, box } of texts)
      if (box.left < frame.left - 1 || box.right > frame.right + 1) outside.push(name);
    texts.forEach((one, index) => {
      for (const other of texts.slice(index + 1)) {
        const across = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
        const down = Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top);
        if (across > 1 && down > 4) overlapping.push(`${one.name} over ${other.name}`);
      }
    });
  }
  const smallest = Math.min(
    ...[...document.querySelectorAll("figure > svg text")].map(
      (text) => text.getBoundingClientRect().height,
    ),
  );
  return {
    tooWide: root.scrollWidth - root.clientWidth,
    colours: Object.fromEntries(names.map((name) => [name, colour(`--${name}`)])),
    outside,
    overlapping,
    smallest,
  };
}
