// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/products.h"

#include "kernels/linear/linear.h"

namespace earnest::engine {
namespace {

constexpr char kOp[] = "engine", kArgument[] = "products";

}  // namespace

const char* name_of(Products products) { return products == Products::kVendor ? "vendor" : "ours"; }

Status read_products(const std::string& name, Products* products) {
  for (const Products known : {Products::kOurs, Products::kVendor}) {
    if (name != name_of(known)) continue;
    *products = known;
    return {};
  }
  return invalid_argument(kOp, kArgument, "ours or vendor", name);
}

Status check_products(Products products, const Place& place) {
  if (products == Products::kOurs) return {};
  if (place.device == Device::kCpu) return unsupported(kOp, kArgument, "ours on cpu", "vendor");
  return linear::find_vendor(kOp, kArgument, "ours");
}

}  // namespace earnest::engine
