// SPDX-License-Identifier: Apache-2.0
// The smallest test frame that tells where and why: TEST(name) { CHECK(...); CHECK_NEAR(a, b, bound); }
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

namespace check {

struct Test {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int& failures() {
  static int count = 0;
  return count;
}
struct Register {
  Register(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

// Whether one more failed check is told of: a test may have many in a loop.
inline int& told() {
  static int count = 0;
  return count;
}
inline bool tells() { return ++failures(), ++told() <= 20; }

inline int run_all() {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a program that is ended has said where it was
  for (const Test& test : tests()) {
    const int before = failures();
    told() = 0;
    std::printf("     %s\n", test.name);
    test.body();
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", test.name);
  }
  std::printf("%zu tests, %d failed checks\n", tests().size(), failures());
  return failures() == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                  \
  static void test_##name();                                        \
  static const check::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      if (check::tells()) std::printf("%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
    }                                                                                        \
  } while (0)

#define CHECK_NEAR(a, b, bound)                                                                       \
  do {                                                                                                \
    const double check_a = (a), check_b = (b), check_bound = (bound);                                 \
    if (!(std::abs(check_a - check_b) <= check_bound)) {                                              \
      if (check::tells())                                                                             \
        std::printf("%s:%d: %s = %.9g, %s = %.9g, bound %.3g\n", __FILE__, __LINE__, #a, check_a, #b, \
                    check_b, check_bound);                                                            \
    }                                                                                                 \
  } while (0)

int main() { return check::run_all(); }
