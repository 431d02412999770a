// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/driver.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
// For the runtime's library to find, which hidden names are not.
#define FOUND_BY_RUNTIME extern "C" __attribute__((visibility("default")))
FOUND_BY_RUNTIME const char* __asan_default_options() { return "allocator_may_return_null=1"; }
FOUND_BY_RUNTIME const char* __ubsan_default_options() { return "print_stacktrace=1:abort_on_error=1"; }
#endif

namespace {

using Random = std::mt19937_64;

const char* program = "";
unsigned long long seed_now = 0, number_now = 0;

void say_how_to_repeat() { std::fprintf(stderr, "again: %s 0 %llu %llu\n", program, seed_now, number_now); }

std::string some(const std::vector<std::string>& texts, Random& random) {
  return texts.empty() ? "" : texts[random() % texts.size()];
}

// Numbers at the edges of what fields hold, as bytes of either kind.
std::string edge(Random& random) {
  const uint64_t bits = random() % 65;
  const uint64_t value = (bits == 64 ? 0 : uint64_t{1} << bits) + random() % 3 - 1;
  if (random() % 2 == 0)
    return std::to_string(random() % 2 == 0 ? value : static_cast<uint64_t>(random() % 300));
  const size_t size = size_t{1} << random() % 4;
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes.substr(0, size);
}

void change(std::string* input, const FuzzMaterial& material, Random& random) {
  const size_t at = random() % (input->size() + 1);
  const size_t rest = input->size() - at;
  const size_t run = rest == 0 ? 0 : random() % std::min<size_t>(rest + 1, size_t{1} << random() % 12);
  switch (random() % 9) {
    case 0:
      if (rest > 0) (*input)[at] = static_cast<char>((*input)[at] ^ 1 << random() % 8);
      break;
    case 1:
      if (rest > 0) (*input)[at] = static_cast<char>(random());
      break;
    case 2:
      input->erase(at, run);
      break;
    case 3:
      input->insert(at, input->substr(at, run));
      break;
    case 4:
      input->insert(at, some(material.words, random));
      break;
    case 5: {
      const std::string number = edge(random);
      input->replace(at, std::min(number.size(), rest), number);
      break;
    }
    case 6: {
      const std::string other = some(material.seeds, random);
      const size_t from = random() % (other.size() + 1);
      input->replace(at, run, other.substr(from, random() % 256));
      break;
    }
    case 7: {  // a digit for a digit: what keeps a text well formed
      const size_t digit = input->find_first_of("0123456789", at);
      if (digit != input->npos) (*input)[digit] = static_cast<char>('0' + random() % 10);
      break;
    }
    default: {
      const std::string word = some(material.words, random);
      input->replace(at, std::min(word.size(), rest), word);
    }
  }
}

std::string input_of(uint64_t seed, uint64_t number, const FuzzMaterial& material) {
  std::seed_seq both{seed, seed >> 32, number, number >> 32};
  Random random(both);
  std::string input = some(material.seeds, random);
  for (uint64_t changes = random() % 8; changes > 0; --changes) change(&input, material, random);
  if (random() % 16 == 0) input.resize(random() % (input.size() + 1));
  if (input.size() > material.longest) input.resize(material.longest);
  return input;
}

void run(const std::string& input) {
  // A copy of exactly its size, so that a byte beyond it is seen.
  auto* bytes = static_cast<uint8_t*>(std::malloc(std::max<size_t>(input.size(), 1)));
  std::memcpy(bytes, input.data(), input.size());
  LLVMFuzzerTestOneInput(bytes, input.size());
  std::free(bytes);
}

void on_abort(int) {
  say_how_to_repeat();
  std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: %s SECONDS [SEED] | 0 SEED NUMBER\n", argv[0]);
    return 2;
  }
  program = argv[0];
  std::signal(SIGABRT, on_abort);
  seed_now = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(say_how_to_repeat);
#endif
  const FuzzMaterial material = fuzz_material();
  if (argc == 4) {
    number_now = std::strtoull(argv[3], nullptr, 10);
    run(input_of(seed_now, number_now, material));
    return 0;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  for (; std::chrono::steady_clock::now() < end; ++number_now) {
    run(input_of(seed_now, number_now, material));
  }
  std::printf("%llu inputs of seed %llu\n", number_now, seed_now);
  return 0;
}
