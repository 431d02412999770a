// SPDX-License-Identifier: Apache-2.0
// Base64 (RFC 4648, section 4), strictly: its alphabet alone, and no bits that belong to no byte. The "=" at
// the end may be missing.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace earnest::capi {

std::optional<std::vector<std::byte>> decode_base64(std::string_view text);

}  // namespace earnest::capi
