// SPDX-License-Identifier: Apache-2.0
// GPT-2's way of writing bytes in the vocabulary of a tokenizer.json: each byte as one printable character. A
// byte that is a printable character of Latin-1 stands for itself; the others follow from U+0100 on, in their
// order.
#pragma once

#include <string>
#include <string_view>

namespace earnest::engine {

// The bytes that a token of the vocabulary stands for. False where it has a character that stands for no
// byte.
bool from_byte_level(std::string_view token, std::string* bytes);

}  // namespace earnest::engine
