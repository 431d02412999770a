/* SPDX-License-Identifier: Apache-2.0
 * hear MODEL RECORDING.wav [QUESTION]: what the model answers, as it comes. */
#include <earnest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(earnest_status status) {
  if (status == EARNEST_OK) return;
  fprintf(stderr, "%s: %s\n", earnest_status_name(status), earnest_last_error());
  exit(1);
}

static void* read_file(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  char* data = NULL;
  long size = -1;
  if (file && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  if (size >= 0) data = malloc((size_t)size + 1);
  if (!data || fseek(file, 0, SEEK_SET) != 0 || fread(data, 1, (size_t)size, file) != (size_t)size) {
    fprintf(stderr, "cannot read %s\n", path);
    exit(1);
  }
  fclose(file);
  *bytes = (size_t)size;
  return data;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: hear MODEL RECORDING.wav [QUESTION]\n");
    return 2;
  }
  earnest_model* model = NULL;
  earnest_engine* engine = NULL;
  earnest_session* session = NULL;
  earnest_generation* generation = NULL;
  check(earnest_model_load(argv[1], NULL, &model));
  check(earnest_engine_create(model, NULL, &engine));
  check(earnest_session_create(engine, NULL, &session));

  size_t bytes = 0;
  void* wav = read_file(argv[2], &bytes);
  check(earnest_session_add_wav(session, "user", wav, bytes));
  free(wav);
  if (argc > 3) check(earnest_session_add_text(session, "user", argv[3], strlen(argv[3])));

  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  params.max_tokens = 256;
  check(earnest_generation_start(session, &params, &generation));
  earnest_event event = EARNEST_EVENT_INIT;
  do {
    check(earnest_generation_next(generation, -1, &event));
    FILE* out = event.kind == EARNEST_EVENT_REASONING ? stderr : stdout; /* thoughts and replies apart */
    if (event.text) fwrite(event.text, 1, event.text_bytes, out);
    fflush(out);
  } while (event.kind != EARNEST_EVENT_DONE);
  check(event.status);
  printf("\n");

  earnest_generation_destroy(generation);
  earnest_session_destroy(session);
  earnest_engine_destroy(engine);
  earnest_model_destroy(model);
  return 0;
}
