// SPDX-License-Identifier: Apache-2.0
// The JSON schemas of tools as a prompt shows them: the way Python's json.dumps writes them (", " and ": "
// between, no escapes beyond ASCII's), which is what models are trained on.
#pragma once

#include <string>

#include "kernels/common/status.h"

namespace earnest::engine {

// schemas: a JSON list of objects, in any spacing. text: empty where the list is.
Status tools_text(const std::string& schemas, std::string* text);

}  // namespace earnest::engine
