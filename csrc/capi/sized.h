// SPDX-License-Identifier: Apache-2.0
// Structs that begin with their size as the caller was compiled. Fields are only ever added at the end, never
// into padding, and zero is their default: so an older caller's struct is a beginning of ours, and a newer
// caller's may be used as long as what we do not know is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>

#include "csrc/capi/call.h"

namespace earnest::capi {

constexpr size_t kLargestStruct = 4096;  // a size above it was never written

template <typename Struct>
Outcome check_size(const char* op, const char* argument, size_t size) {
  static_assert(std::is_trivially_copyable_v<Struct> && offsetof(Struct, struct_size) == 0);
  if (size > sizeof(size_t) && size <= kLargestStruct && size % alignof(Struct) == 0) return {};
  return invalid(op, std::string(argument) + ".struct_size",
                 "the size of the struct, such as " + std::to_string(sizeof(Struct)), std::to_string(size));
}

// params: the caller's over the defaults. given may be NULL.
template <typename Struct>
Outcome read_params(const char* op, const Struct* given, Struct* params) {
  if (!given) return {};
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  EARNEST_RETURN_IF_FAILED(check_size<Struct>(op, "params", size));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      return failure(EARNEST_UNSUPPORTED, op, "params",
                     "only fields that this library knows (" + std::to_string(sizeof(Struct)) + " bytes)",
                     "another at byte " + std::to_string(i));
    }
  }
  std::memcpy(params, given, std::min(size, sizeof(Struct)));
  params->struct_size = sizeof(Struct);
  return {};
}

// As much of ours as the caller has room for; fields that only the caller knows become zero. Its size, which
// has been checked, stays.
template <typename Struct>
void write_struct(const Struct& ours, Struct* given) {
  constexpr size_t kAfter = sizeof(size_t);
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  auto* out = reinterpret_cast<unsigned char*>(given);
  const size_t known = std::min(size, sizeof(Struct));
  std::memcpy(out + kAfter, reinterpret_cast<const unsigned char*>(&ours) + kAfter, known - kAfter);
  std::memset(out + known, 0, size - known);
}

// For the *_default functions: nothing happens where the size is none.
template <typename Struct>
void write_defaults(const Struct& defaults, Struct* given, size_t size) {
  if (!given || !check_size<Struct>("defaults", "params", size).ok()) return;
  std::memcpy(given, &size, sizeof size);
  write_struct(defaults, given);
}

// The number that an enum of the caller's holds, which may be none of its names.
template <typename Enum>
int number_of(const Enum& value) {
  static_assert(std::is_enum_v<Enum> && sizeof(Enum) == sizeof(int));
  int number = 0;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

}  // namespace earnest::capi
