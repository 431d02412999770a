// SPDX-License-Identifier: Apache-2.0
// Who multiplies on a GPU by matrices that are not codes: kernels/linear, for which a row's bits depend on
// that row alone, or the vendor's library, for which they may depend on what is computed beside it. So this
// is the switch of batch invariance: with the vendor's, what a session says may depend on who else speaks,
// and on the pieces that its prompt is read in.
#pragma once

#include <string>

#include "csrc/engine/place.h"
#include "kernels/common/status.h"

namespace earnest::engine {

enum class Products { kOurs, kVendor };

const char* name_of(Products products);
Status read_products(const std::string& name, Products* products);

// Whether a model there can have them; if not, the sentence about it: "[engine] products: expected ours ...".
Status check_products(Products products, const Place& place);

}  // namespace earnest::engine
