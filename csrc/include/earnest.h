/* SPDX-License-Identifier: Apache-2.0
 *
 * earnest: audio language models that hear, reason and answer. This header is all a program needs.
 *
 *     earnest_model *model = NULL;
 *     earnest_engine *engine = NULL;
 *     earnest_session *session = NULL;
 *     earnest_audio *audio = NULL;
 *     earnest_generation *generation = NULL;
 *     earnest_event event = EARNEST_EVENT_INIT;
 *
 *     earnest_model_load("folder", NULL, &model);                // weights, tokenizer, template: once
 *     earnest_engine_create(model, NULL, &engine);               // memory of dialogues, and what computes
 *     earnest_session_create(engine, NULL, &session);            // one dialogue
 *     earnest_audio_create(session, "user", 48000, 1, &audio);   // somebody speaks
 *     earnest_audio_push_f32(audio, samples, count);             // ... again and again, pieces of any size
 *     earnest_audio_commit(audio);                               // ... until the turn ends
 *     earnest_generation_start(session, NULL, &generation);      // the answer begins
 *     while (earnest_generation_next(generation, -1, &event) == EARNEST_OK &&
 *            event.kind != EARNEST_EVENT_DONE)
 *       if (event.kind == EARNEST_EVENT_REPLY) fwrite(event.text, 1, event.text_bytes, stdout);
 *
 * Objects. A model is weights that never change; many engines may use it. An engine owns the memory of
 * dialogues (the KV pool) and one thread that computes for all of them together. A session is one dialogue.
 * An audio is a clip that is being spoken into a session. A generation is one answer of it.
 *
 * Lifetimes. Every *_load, *_create, *_start, *_fork and *_retain gives the caller one reference, which one
 * call of the matching *_destroy gives back; destroying NULL does nothing. Children hold their parents, so
 * that the order does not matter: a model goes when the last engine over it has gone. Destroying a generation
 * cancels it; destroying an audio that was not committed forgets it.
 *
 * Threads. Models and engines may be used from any thread at any time. A session and its audios belong to one
 * thread at a time, and so does a generation, but earnest_generation_cancel may be called from any thread
 * while the generation lives. Nothing here waits for computation but earnest_generation_next (as long as it
 * is told to), earnest_generation_tokens, earnest_model_load, earnest_session_save, earnest_engine_drain,
 * earnest_chat, and the destruction of the last reference to an engine.
 *
 * Errors. Every call that can fail returns a status; earnest_last_error() then says on the same thread what
 * was expected and what came: "[op] argument: expected X, got Y". A call that fails changes nothing, and sets
 * what it was to create to NULL. Nothing here throws, aborts, exits, writes to stdout or stderr, or touches
 * signal handlers. An argument that may be NULL says so.
 *
 * Text is UTF-8. Text that goes in is never searched for special tokens. Text that comes out is whole
 * characters and valid until the next call on the object that gave it, unless it says otherwise.
 *
 * Growth. Structs begin with their size as the caller was compiled: struct_size. Fields are only ever added
 * at the end, zero is their default, and a library older than its caller refuses what it does not know. The
 * version of the interface is EARNEST_ABI_VERSION; the library's is earnest_abi_version().
 */
#ifndef EARNEST_H
#define EARNEST_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(_WIN32)
#define EARNEST_API __attribute__((visibility("default")))
#else
#define EARNEST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The build reads both from here: they are the package's version and the SONAME's number. */
#define EARNEST_VERSION "0.1.0"
#define EARNEST_ABI_VERSION 0

/* ---- process ------------------------------------------------------------------------------------------ */

typedef enum earnest_status {
  EARNEST_OK = 0,
  EARNEST_INVALID_ARGUMENT = 1,
  EARNEST_NOT_FOUND = 2,         /* a file that is not there */
  EARNEST_UNSUPPORTED_MODEL = 3, /* a checkpoint of another architecture */
  EARNEST_CORRUPT_MODEL = 4,     /* a file that is not what it should be */
  EARNEST_OUT_OF_MEMORY = 5,
  EARNEST_CONTEXT_FULL = 6, /* no room for more tokens, in the model's context or in the KV pool */
  EARNEST_BUSY = 7,         /* the queue is full, or the session is generating */
  EARNEST_TIMEOUT = 8,      /* nothing came in time; try again */
  EARNEST_CANCELLED = 9,
  EARNEST_AUDIO_FORMAT = 10, /* not a WAV file that can be read, or samples that are not finite */
  EARNEST_DEVICE = 11,
  EARNEST_INTERNAL = 12,
  EARNEST_UNSUPPORTED = 13 /* asked for something that this build or machine does not have */
} earnest_status;

EARNEST_API const char* earnest_version(void);    /* EARNEST_VERSION of the library */
EARNEST_API uint32_t earnest_abi_version(void);   /* EARNEST_ABI_VERSION of the library */
EARNEST_API const char* earnest_build_info(void); /* JSON: compiler, devices, what this CPU runs; static */
EARNEST_API const char* earnest_status_name(int status); /* such as "INVALID_ARGUMENT"; static */
EARNEST_API const char* earnest_last_error(void); /* of this thread's last call that failed; "" before any */

typedef enum earnest_log_level {
  EARNEST_LOG_DEBUG = 0,
  EARNEST_LOG_INFO,
  EARNEST_LOG_WARNING,
  EARNEST_LOG_ERROR
} earnest_log_level;
typedef void (*earnest_log_callback)(earnest_log_level level, const char* line, void* user_data);

/* Where log lines go; NULL (as at the start): nowhere. Lines hold no text, audio or keys of dialogues. They
 * come from any thread, one at a time; the callback may call nothing here. When this returns, the callback
 * that was there before is not called any more. */
EARNEST_API void earnest_log_set(earnest_log_callback callback, void* user_data);

/* Gives back memory that a call documents as the caller's; NULL does nothing. */
EARNEST_API void earnest_free(void* memory);

/* ---- model -------------------------------------------------------------------------------------------- */

typedef struct earnest_model earnest_model;

typedef enum earnest_weights {
  EARNEST_WEIGHTS_AS_STORED = 0, /* float32 where the checkpoint is, else bfloat16; quantised if saved so */
  EARNEST_WEIGHTS_FLOAT32,
  EARNEST_WEIGHTS_BFLOAT16,
  EARNEST_WEIGHTS_INT8, /* the decoder's; one scale for each output channel. The rest is bfloat16. */
  EARNEST_WEIGHTS_INT4  /* groups of 32 inputs; the output matrix int8 */
} earnest_weights;

/* Who multiplies on a GPU by weights that are not quantised. With OURS a row of numbers depends on that row
 * alone, to the last bit: an answer does not depend on what runs beside it, nor on the pieces that a dialogue
 * is read in. With VENDOR, for speed, it may: the same seed and dialogue may then have another answer.
 * Attention, which with OURS takes all keys in pieces, then takes those of prompts whole, unless a dialogue
 * of more than 512 tokens says one in the same step. */
typedef enum earnest_products {
  EARNEST_PRODUCTS_OURS = 0,
  EARNEST_PRODUCTS_VENDOR /* cuBLASLt, which is loaded here: libcublasLt.so.13 or .12, or the file that the
                             environment's EARNEST_CUBLASLT names. EARNEST_UNSUPPORTED where there is none,
                             and on the CPU. */
} earnest_products;

/* How far loading has come, 0 to 1; returning non-zero gives up: EARNEST_CANCELLED. */
typedef int (*earnest_progress_callback)(double fraction, void* user_data);

typedef struct earnest_model_params {
  size_t struct_size;
  earnest_weights weights;
  earnest_progress_callback progress; /* or NULL */
  void* progress_user_data;
  const char* device; /* where its weights lie and computing is done: NULL or "cpu"; "cuda" (the first GPU) or
                         "cuda:1" and so on where the build has it and that GPU is there, for all weights but
                         float32 and heads of 64 or 128. No call changes which GPU is its thread's. */
  earnest_products products;
  uint32_t reserved; /* 0 */
} earnest_model_params;

/* This and its like below fill a struct with the defaults, and its struct_size with the one given:
 * earnest_model_params_default(&params, sizeof params). */
EARNEST_API void earnest_model_params_default(earnest_model_params* params, size_t struct_size);

/* A folder in the published format: config.json, tokenizer.json, one or many .safetensors, which stay mapped
 * and must not change. params may be NULL here and everywhere: the defaults. */
EARNEST_API earnest_status earnest_model_load(const char* folder, const earnest_model_params* params,
                                              earnest_model** model);
EARNEST_API void earnest_model_retain(earnest_model* model); /* one more reference */
EARNEST_API void earnest_model_destroy(earnest_model* model);

/* JSON: sizes, context, special tokens, device, products, precision, bytes of weights. Valid as long as the
 * model; NULL of NULL. */
EARNEST_API const char* earnest_model_info(const earnest_model* model);

/* Both write at most `capacity` and set *count (*bytes) to what there is; more than capacity:
 * EARNEST_INVALID_ARGUMENT and nothing else written, so that a call with NULL and capacity 0 asks for the
 * size. Text of detokenize gets no final NUL; special tokens give their names. parse_special: whether names
 * of special tokens in the text become those tokens; 0 for what a user wrote. */
EARNEST_API earnest_status earnest_tokenize(const earnest_model* model, const char* text, size_t text_bytes,
                                            int parse_special, int32_t* ids, size_t capacity, size_t* count);
EARNEST_API earnest_status earnest_detokenize(const earnest_model* model, const int32_t* ids, size_t count,
                                              char* text, size_t capacity, size_t* bytes);

/* ---- engine ------------------------------------------------------------------------------------------- */

typedef struct earnest_engine earnest_engine;

typedef enum earnest_cuda_graphs {
  EARNEST_CUDA_GRAPHS_DEFAULT = 0, /* on a GPU that can record them; on others steps are launched */
  EARNEST_CUDA_GRAPHS_ON,          /* the same, but refused on the CPU */
  EARNEST_CUDA_GRAPHS_OFF
} earnest_cuda_graphs;

typedef struct earnest_engine_params {
  size_t struct_size;
  const char* device; /* NULL or the model's: keys and values lie where its weights do */
  uint64_t kv_bytes;  /* memory for keys and values; 0: room for 4 full contexts or a quarter of the machine's
                         memory, whichever is less. The system gives pages as they are used; on a GPU all of it
                         is taken at once, and for the quarter stands half of what is free there. */
  uint32_t max_generations; /* that run side by side; 0: 64. Others wait their turn. */
  uint32_t max_waiting;     /* that may wait before starting one more is EARNEST_BUSY; 0: 256 */
  uint32_t threads;         /* for computing, of the whole process; 0: as they are (at first: all cores) */
  uint32_t prefill_tokens;  /* of prompts that are read between two steps of the answers beside; 0: 256 */
  earnest_cuda_graphs cuda_graphs; /* of steps in which every generation says a token: the same bits */
  uint32_t reserved;               /* 0 */
} earnest_engine_params;

EARNEST_API void earnest_engine_params_default(earnest_engine_params* params, size_t struct_size);
EARNEST_API earnest_status earnest_engine_create(earnest_model* model, const earnest_engine_params* params,
                                                 earnest_engine** engine);

/* Takes no new generations and waits for those there are, at most so many milliseconds (-1: for ever); then
 * EARNEST_TIMEOUT, and the rest goes on. */
EARNEST_API earnest_status earnest_engine_drain(earnest_engine* engine, int64_t timeout_ms);
EARNEST_API void earnest_engine_destroy(earnest_engine* engine);

typedef struct earnest_engine_stats {
  size_t struct_size;
  uint32_t running, waiting, sessions;
  uint64_t kv_tokens, kv_tokens_used;
  uint64_t prompt_tokens, cached_tokens, completion_tokens; /* since the engine was made */
  uint64_t recorded_graphs, graph_steps, plain_steps;       /* steps replayed, launched; 0 on the CPU */
  const char* graph_trouble; /* why nothing can be recorded; NULL: nothing is known. Stays with the engine */
} earnest_engine_stats;

#define EARNEST_ENGINE_STATS_INIT {sizeof(earnest_engine_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL}

EARNEST_API earnest_status earnest_engine_get_stats(const earnest_engine* engine,
                                                    earnest_engine_stats* stats);

/* ---- session ------------------------------------------------------------------------------------------ */

typedef struct earnest_session earnest_session;

typedef enum earnest_history {
  EARNEST_HISTORY_KEEP = 0, /* thoughts stay in the dialogue */
  EARNEST_HISTORY_STRIP /* an answer's thought is taken away when the answer is there; the reply is read again
                           while nobody waits */
} earnest_history;

typedef struct earnest_session_params {
  size_t struct_size;
  const char* template_name; /* NULL or "canonical"; "stepfun-compat" */
  earnest_history history;
  const char* tools; /* a JSON list of tool schemas, or NULL */
} earnest_session_params;

EARNEST_API void earnest_session_params_default(earnest_session_params* params, size_t struct_size);
EARNEST_API earnest_status earnest_session_create(earnest_engine* engine,
                                                  const earnest_session_params* params,
                                                  earnest_session** session);
EARNEST_API void earnest_session_destroy(earnest_session* session);

/* A dialogue is a list of messages, a message a role ("system", "user", "assistant", another word) and its
 * parts, texts and clips. What is added goes to the last message if that has the same role and is open, else
 * to a new one. earnest_session_end_message and an answer close it. */
EARNEST_API earnest_status earnest_session_add_text(earnest_session* session, const char* role,
                                                    const char* text, size_t text_bytes);
/* A past answer from elsewhere: a closed message. reasoning may be NULL: none known. */
EARNEST_API earnest_status earnest_session_add_answer(earnest_session* session, const char* reasoning,
                                                      const char* reply);
EARNEST_API earnest_status earnest_session_end_message(earnest_session* session);

EARNEST_API size_t earnest_session_message_count(const earnest_session* session);
EARNEST_API earnest_status earnest_session_message_tokens(const earnest_session* session, size_t message,
                                                          size_t* tokens);

/* A second dialogue with the same past. */
EARNEST_API earnest_status earnest_session_fork(const earnest_session* session, earnest_session** fork);

/* Forgets all but the first messages. */
EARNEST_API earnest_status earnest_session_truncate(earnest_session* session, size_t messages);

/* Reads the dialogue so far while no answer waits for the engine, so that the next answer starts sooner. */
EARNEST_API earnest_status earnest_session_warm(earnest_session* session);

/* The dialogue with everything that was computed for it; loaded, it goes on with the same bits over the same
 * weights (but see earnest_products). A file of another model is refused. */
EARNEST_API earnest_status earnest_session_save(earnest_session* session, const char* path);
EARNEST_API earnest_status earnest_session_load(earnest_engine* engine, const char* path,
                                                earnest_session** session);

/* ---- audio -------------------------------------------------------------------------------------------- */

typedef struct earnest_audio earnest_audio;

/* A clip for a message of this role, spoken in pieces. Any rate from 1,000 to 192,000 Hz; channels are mixed.
 * Features are computed as samples come; every 25 s of a long clip is encoded and read by the decoder while
 * the rest is spoken. One audio of a session at a time: until it is committed or destroyed, nothing else is
 * added. Its place in the dialogue is where it was created. */
EARNEST_API earnest_status earnest_audio_create(earnest_session* session, const char* role,
                                                uint32_t sample_rate, uint32_t channels,
                                                earnest_audio** audio);
/* `frames` samples of each channel, interleaved; f32 in [-1, 1] (louder is allowed). */
EARNEST_API earnest_status earnest_audio_push_f32(earnest_audio* audio, const float* samples, size_t frames);
EARNEST_API earnest_status earnest_audio_push_s16(earnest_audio* audio, const int16_t* samples,
                                                  size_t frames);
EARNEST_API double earnest_audio_seconds(const earnest_audio* audio); /* pushed so far */
EARNEST_API earnest_status earnest_audio_clear(earnest_audio* audio); /* forgets what was pushed */
/* The end of the clip. One without samples adds nothing. Only destroy may follow. */
EARNEST_API earnest_status earnest_audio_commit(earnest_audio* audio);
EARNEST_API void earnest_audio_destroy(earnest_audio* audio);

/* A whole WAV file in memory as a part of a message of this role. */
EARNEST_API earnest_status earnest_session_add_wav(earnest_session* session, const char* role,
                                                   const void* wav, size_t bytes);

/* ---- generation --------------------------------------------------------------------------------------- */

typedef struct earnest_generation earnest_generation;

typedef enum earnest_thinking {
  EARNEST_THINKING_AUTO = 0, /* the template's habit */
  EARNEST_THINKING_ON,       /* the prompt opens a thought */
  EARNEST_THINKING_OFF       /* the prompt leaves it to the model */
} earnest_thinking;

typedef struct earnest_generation_params {
  size_t struct_size;
  uint32_t max_tokens; /* 0: as many as there is room for; more than that is cut to it */
  earnest_thinking thinking;
  double temperature; /* 0: always the likeliest token */
  int32_t top_k;      /* 0: off */
  double top_p;       /* 0 or 1: off */
  double min_p;
  double repetition_penalty; /* 0 or 1: off */
  double presence_penalty, frequency_penalty;
  uint64_t seed;           /* the same seed and dialogue: the same answer, whatever else runs (but see
                              earnest_products) */
  const char* const* stop; /* the answer ends before the first of these in the reply */
  size_t stop_count;
  const int32_t* stop_ids; /* beside the model's own */
  size_t stop_id_count;
  const char* prefill; /* the answer begins with this, verbatim, such as "<think>\n"; NULL: nothing */
} earnest_generation_params;

/* temperature 0.7, top_p 0.9, all else 0 */
EARNEST_API void earnest_generation_params_default(earnest_generation_params* params, size_t struct_size);

/* Answers the dialogue as it stands. While it runs, the session cannot be changed (EARNEST_BUSY). When it is
 * done, the answer is the session's last message; cancelled, what had been said so far is. */
EARNEST_API earnest_status earnest_generation_start(earnest_session* session,
                                                    const earnest_generation_params* params,
                                                    earnest_generation** generation);

typedef enum earnest_event_kind {
  EARNEST_EVENT_NONE = 0,
  EARNEST_EVENT_PREFILL,   /* done of total tokens of the prompt have been read */
  EARNEST_EVENT_REASONING, /* more of the thought */
  EARNEST_EVENT_REPLY,     /* more of the reply */
  EARNEST_EVENT_DONE       /* the last one: why, and where it failed the status (earnest_last_error: more) */
} earnest_event_kind;

typedef enum earnest_finish_reason {
  EARNEST_FINISH_NONE = 0,
  EARNEST_FINISH_STOP,   /* the model ended its turn, or a stop text or id came */
  EARNEST_FINISH_LENGTH, /* max_tokens, or no more room */
  EARNEST_FINISH_CANCELLED,
  EARNEST_FINISH_ERROR
} earnest_finish_reason;

typedef struct earnest_event {
  size_t struct_size;
  earnest_event_kind kind;
  const char* text; /* REASONING and REPLY: whole characters, NUL behind them */
  size_t text_bytes;
  uint32_t done, total;                /* PREFILL */
  earnest_finish_reason finish_reason; /* DONE */
  earnest_status status;               /* DONE: why it failed; else EARNEST_OK */
} earnest_event;

#define EARNEST_EVENT_INIT \
  {sizeof(earnest_event), EARNEST_EVENT_NONE, NULL, 0, 0, 0, EARNEST_FINISH_NONE, EARNEST_OK}

/* The next event; waits at most so many milliseconds (-1: for ever, 0: not at all), then EARNEST_TIMEOUT.
 * After DONE: EARNEST_CANCELLED where it was cancelled, else EARNEST_INVALID_ARGUMENT. */
EARNEST_API earnest_status earnest_generation_next(earnest_generation* generation, int64_t timeout_ms,
                                                   earnest_event* event);

/* Events go to a callback on the engine's thread instead; to be set before the first earnest_generation_next.
 * The callback must not wait, and may call nothing here but earnest_generation_cancel. It is not called any
 * more when earnest_generation_destroy has returned. */
typedef void (*earnest_event_callback)(const earnest_event* event, void* user_data);
EARNEST_API earnest_status earnest_generation_set_callback(earnest_generation* generation,
                                                           earnest_event_callback callback, void* user_data);

/* Ends it before the next token; again and afterwards it does nothing. */
EARNEST_API void earnest_generation_cancel(earnest_generation* generation);

typedef struct earnest_usage {
  size_t struct_size;
  uint64_t prompt_tokens, cached_tokens, audio_tokens;     /* cached and audio: of the prompt's */
  uint64_t completion_tokens, reasoning_tokens;            /* reasoning: of the completion's */
  double waiting_ms, prefill_ms, first_token_ms, total_ms; /* first_token_ms and total_ms: since the start */
} earnest_usage;

#define EARNEST_USAGE_INIT {sizeof(earnest_usage), 0, 0, 0, 0, 0, 0, 0, 0, 0}

EARNEST_API earnest_status earnest_generation_get_usage(const earnest_generation* generation,
                                                        earnest_usage* usage);

/* All of the thought or the reply so far, NUL behind it; "" of NULL. bytes (may be NULL): how long it is, of
 * which a model may have said U+0000 as well. */
EARNEST_API const char* earnest_generation_reasoning(earnest_generation* generation, size_t* bytes);
EARNEST_API const char* earnest_generation_reply(earnest_generation* generation, size_t* bytes);
/* The ids of the answer so far, one that ended it included, with their log-probabilities at the sampling
 * temperature (at 1 where that is 0), which are computed now; either array may be NULL; sizes as for
 * earnest_tokenize. */
EARNEST_API earnest_status earnest_generation_tokens(earnest_generation* generation, int32_t* ids,
                                                     float* logprobs, size_t capacity, size_t* count);
EARNEST_API void earnest_generation_destroy(earnest_generation* generation);

/* ---- all at once -------------------------------------------------------------------------------------- */

/* A chat completion request of OpenAI's shape in JSON (messages with text and input_audio parts), answered in
 * one call; *response is JSON of the same API, the caller's (earnest_free). What it may say and what it is
 * refused for: csrc/capi/README.md. Errors come as a status; *response is then NULL. */
EARNEST_API earnest_status earnest_chat(earnest_engine* engine, const char* request, char** response);

#ifdef __cplusplus
}
#endif

#endif /* EARNEST_H */
