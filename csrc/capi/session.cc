// SPDX-License-Identifier: Apache-2.0
#include "csrc/capi/call.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/results.h"
#include "csrc/capi/sized.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "session";

Outcome options_of(const earnest_session_params& params, engine::SessionOptions* options) {
  if (params.template_name) {
    const auto name = engine::template_named(params.template_name);
    if (!name) return invalid(kOp, "template_name", "canonical or stepfun-compat", params.template_name);
    options->template_name = *name;
  }
  const int history = number_of(params.history);
  if (history != EARNEST_HISTORY_KEEP && history != EARNEST_HISTORY_STRIP) {
    return invalid(kOp, "history", "one of earnest_history", std::to_string(history));
  }
  options->strip_history = history == EARNEST_HISTORY_STRIP;
  if (params.tools) options->tools = params.tools;
  return {};
}

// make(&session) -> Status, into a new handle.
template <typename Make>
Outcome hand_out(const Make& make, earnest_session** session) {
  auto handle = std::make_unique<earnest_session>();
  EARNEST_RETURN_IF_FAILED(make(&handle->session));
  *session = handle.release();
  return {};
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;
using earnest::engine::Session;

void earnest_session_params_default(earnest_session_params* params, size_t struct_size) {
  write_defaults(earnest_session_params{}, params, struct_size);
}

earnest_status earnest_session_create(earnest_engine* engine, const earnest_session_params* params,
                                      earnest_session** session) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    *session = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    earnest_session_params chosen{};
    EARNEST_RETURN_IF_FAILED(read_params(kOp, params, &chosen));
    earnest::engine::SessionOptions options;
    EARNEST_RETURN_IF_FAILED(options_of(chosen, &options));
    return hand_out([&](auto* made) { return Session::create(engine->engine, options, made); }, session);
  });
}

void earnest_session_destroy(earnest_session* session) { delete session; }

earnest_status earnest_session_add_text(earnest_session* session, const char* role, const char* text,
                                        size_t text_bytes) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "role", role));
    if (text_bytes > 0) EARNEST_RETURN_IF_FAILED(required(kOp, "text", text));
    EARNEST_RETURN_IF_FAILED(check_count(kOp, "text_bytes", text_bytes, 1));
    return session->session->add_text(role, std::string_view(text_bytes > 0 ? text : "", text_bytes));
  });
}

earnest_status earnest_session_add_answer(earnest_session* session, const char* reasoning,
                                          const char* reply) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "reply", reply));
    std::optional<std::string> thought;
    if (reasoning) thought = reasoning;
    return session->session->add_answer(thought, reply);
  });
}

earnest_status earnest_session_end_message(earnest_session* session) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    return session->session->end_message();
  });
}

size_t earnest_session_message_count(const earnest_session* session) {
  return session ? session->session->message_count() : 0;
}

earnest_status earnest_session_message_tokens(const earnest_session* session, size_t message,
                                              size_t* tokens) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "tokens", tokens));
    return session->session->message_tokens(message, tokens);
  });
}

earnest_status earnest_session_fork(const earnest_session* session, earnest_session** fork) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "fork", fork));
    *fork = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    return hand_out([&](auto* made) { return session->session->fork(made); }, fork);
  });
}

earnest_status earnest_session_truncate(earnest_session* session, size_t messages) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    return session->session->truncate(messages);
  });
}

earnest_status earnest_session_warm(earnest_session* session) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    return session->session->warm();
  });
}

earnest_status earnest_session_save(earnest_session* session, const char* path) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "path", path));
    return session->session->save(path);
  });
}

earnest_status earnest_session_load(earnest_engine* engine, const char* path, earnest_session** session) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    *session = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "engine", engine));
    EARNEST_RETURN_IF_FAILED(required(kOp, "path", path));
    return hand_out([&](auto* made) { return Session::load(engine->engine, path, made); }, session);
  });
}

earnest_status earnest_session_add_wav(earnest_session* session, const char* role, const void* wav,
                                       size_t bytes) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    EARNEST_RETURN_IF_FAILED(required(kOp, "role", role));
    EARNEST_RETURN_IF_FAILED(required(kOp, "wav", wav));
    EARNEST_RETURN_IF_FAILED(check_count(kOp, "bytes", bytes, 1));
    return session->session->add_wav(role, std::span(static_cast<const std::byte*>(wav), bytes));
  });
}
