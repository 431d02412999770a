/* SPDX-License-Identifier: Apache-2.0
 * The header is all that is needed, and what it says is whole: the initialisers fill every field. */
#include "earnest.h"

earnest_event header_cpp_event = EARNEST_EVENT_INIT;
earnest_engine_stats header_cpp_stats = EARNEST_ENGINE_STATS_INIT;
earnest_usage header_cpp_usage = EARNEST_USAGE_INIT;
