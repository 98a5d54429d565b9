// Seeded loops of hostile cases: what a fuzzer does where there is none. The same seed and number
// give the same case, so a failure is found again with its number alone.
//
//   program [COUNT [FIRST]]   runs the cases FIRST to FIRST + COUNT - 1
//
// A program that ends otherwise than by exit code 0 has named its case on standard error.
#pragma once

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <string_view>

// Of the sanitizers' runtimes, where the program has them.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));
extern "C" __attribute__((weak, visibility("default"))) const char* __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}

namespace seeded {

// SplitMix64 (Steele, Lea and Flood 2014): any seed is a good one.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // A number from first to last.
  int64_t between(int64_t first, int64_t last) {
    const uint64_t count = static_cast<uint64_t>(last) - static_cast<uint64_t>(first) + 1;
    return static_cast<int64_t>(static_cast<uint64_t>(first) + (count ? next() % count : next()));
  }

  // True once in so many times.
  bool once_in(int64_t times) { return between(1, times) == 1; }

  template <typename Value, size_t Count>
  const Value& pick(const Value (&values)[Count]) {
    return values[between(0, Count - 1)];
  }

  // A size as an attacker writes it: at an edge of a type, next to one, or any number.
  int64_t hostile_size() {
    static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    static constexpr int64_t kEdges[] = {0,
                                         1,
                                         16,
                                         256,
                                         int64_t{1} << 16,
                                         int64_t{1} << 26,
                                         int64_t{1} << 31,
                                         int64_t{1} << 32,
                                         int64_t{1} << 61,
                                         int64_t{1} << 62,
                                         kMost,
                                         -kMost};
    if (once_in(4)) return static_cast<int64_t>(next());
    if (once_in(4)) return between(-4, 300);
    return static_cast<int64_t>(static_cast<uint64_t>(pick(kEdges)) +
                                static_cast<uint64_t>(between(-1, 1)));
  }

  void fill(void* memory, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(memory)[i] = next() & 0xff;
  }

  // Text with a few bytes changed, put in, taken out or doubled, or cut short. snippets: what the
  // reader of the text gives a meaning to; at least one.
  template <size_t Count>
  std::string damaged(std::string text, const std::string_view (&snippets)[Count]) {
    for (int64_t changes = between(1, 6); changes > 0; --changes) {
      const size_t at = static_cast<size_t>(between(0, static_cast<int64_t>(text.size())));
      const size_t length = static_cast<size_t>(between(0, 8));
      switch (between(0, 5)) {
        case 0:
          if (at < text.size()) text[at] = static_cast<char>(next() & 0xff);
          break;
        case 1:
          text.insert(at, pick(snippets));
          break;
        case 2:
          text.erase(at, length);
          break;
        case 3:
          text.insert(at, text.substr(at, length));
          break;
        case 4:
          if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << between(0, 7)));
          break;
        default:
          if (once_in(4)) text.resize(at);
      }
    }
    return text;
  }

 private:
  uint64_t state_;
};

inline int64_t current = 0;  // number of the case that runs

inline void name_case() {
  std::fprintf(stderr, "in case %lld: run it alone with the arguments 1 %lld\n",
               static_cast<long long>(current), static_cast<long long>(current));
}

// Ends the program where something does not hold; `what` says what.
inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  name_case();
  std::_Exit(1);
}

// The program: run_case(random, number) for each case that the arguments ask for. An exception that
// it lets out is a failure.
template <typename RunCase>
int run(int argc, char** argv, int64_t default_count, RunCase run_case) {
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : default_count;
  const int64_t first = argc > 2 ? std::atoll(argv[2]) : 1;
  const auto on_signal = [](int caught) {
    name_case();
    std::signal(caught, SIG_DFL);
    std::raise(caught);
  };
  std::signal(SIGABRT, on_signal);
  if (__sanitizer_set_death_callback) {  // AddressSanitizer has the other signals
    __sanitizer_set_death_callback(name_case);
  } else {
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, on_signal);
  }
  for (current = first; current < first + count; ++current) {
    try {
      Random random(static_cast<uint64_t>(current));
      run_case(random, current);
    } catch (const std::exception& error) {
      expect(false, std::string("an exception got out: ") + error.what());
    } catch (...) {
      expect(false, "an exception got out");
    }
  }
  std::printf("%lld cases\n", static_cast<long long>(count));
  return 0;
}

}  // namespace seeded
