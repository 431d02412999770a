// SPDX-License-Identifier: Apache-2.0
// earnest-cli: talking with a model in the terminal, through earnest.h alone.
#include <earnest.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace {

constexpr char kUsage[] = R"(usage: earnest-cli MODEL [options]

Talks with the model in the folder MODEL: text and WAV files in, the thought (on stderr) and the reply (on
stdout) as they come. What --text and --wav give is the first turn, in their order; further turns are lines of
the standard input, one each.

  --text TEXT         a part of the first turn
  --wav FILE          another, a recording: PCM or float, any rate
  --system TEXT       how the model shall behave
  --think, --no-think whether the answer begins with a thought (without either: the model's habit)
  --max-tokens N      the longest answer
  --temperature T     0: always the likeliest token (0.7)
  --top-p P           of the likeliest tokens that make up P (0.9)
  --seed N            the same seed, the same answer (0)
  --weights W         float32, bfloat16, int8 or int4 (as stored)
  --device D          cpu, cuda or cuda:N (cpu)
  --products P        ours or vendor (ours): who multiplies on a GPU by weights that are not quantised. With
                      vendor, cuBLASLt, an answer may depend on what runs beside it, and on the pieces that the
                      dialogue is read in; with ours it does not, to the last bit
  --threads N         for computing (all cores)
  --quiet             the reply alone
  --stats             counts and times of each answer, on stderr
  --help, --version

In a line: /wav FILE adds a recording to the turn, /quit ends; an empty line sends the turn as it is.
Ctrl-C ends the answer, and at the prompt the program.

  earnest-cli models/step-audio-r1 --wav question.wav --text "How does the speaker feel?"
)";

template <auto kDestroy>
struct Destroy {
  template <typename Handle>
  void operator()(Handle* handle) const {
    kDestroy(handle);
  }
};
using Model = std::unique_ptr<earnest_model, Destroy<earnest_model_destroy>>;
using Engine = std::unique_ptr<earnest_engine, Destroy<earnest_engine_destroy>>;
using Session = std::unique_ptr<earnest_session, Destroy<earnest_session_destroy>>;
using Generation = std::unique_ptr<earnest_generation, Destroy<earnest_generation_destroy>>;

// ---- what was asked for ----

struct Part {
  bool sound;
  std::string content;  // a text, or the path of a recording
};

struct Settings {
  std::string folder, system;
  std::vector<Part> first;
  earnest_model_params model{};
  earnest_engine_params engine{};
  earnest_generation_params generation{};
  bool quiet = false, stats = false;

  Settings() {
    earnest_model_params_default(&model, sizeof model);
    earnest_engine_params_default(&engine, sizeof engine);
    earnest_generation_params_default(&generation, sizeof generation);
  }
};

[[noreturn]] void refuse(const std::string& message) {
  std::fprintf(stderr, "earnest-cli: %s\n", message.c_str());
  std::exit(2);
}

template <typename Number>
Number number_of(const std::string& option, const std::string& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse("[" + option + "] value: expected a number in range, got " + text);
  }
  return number;
}

earnest_weights weights_of(const std::string& name) {
  const std::vector<std::string> names = {"as-stored", "float32", "bfloat16", "int8", "int4"};
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<earnest_weights>(i);
  }
  refuse("[--weights] value: expected float32, bfloat16, int8 or int4, got " + name);
}

earnest_products products_of(const std::string& name) {
  if (name == "ours") return EARNEST_PRODUCTS_OURS;
  if (name == "vendor") return EARNEST_PRODUCTS_VENDOR;
  refuse("[--products] value: expected ours or vendor, got " + name);
}

// One option; true where it took the value behind it.
bool read_option(const std::string& option, const char* value, Settings* settings) {
  if (option == "--think") return settings->generation.thinking = EARNEST_THINKING_ON, false;
  if (option == "--no-think") return settings->generation.thinking = EARNEST_THINKING_OFF, false;
  if (option == "--quiet") return settings->quiet = true, false;
  if (option == "--stats") return settings->stats = true, false;
  const bool known = option == "--text" || option == "--wav" || option == "--system" ||
                     option == "--max-tokens" || option == "--temperature" || option == "--top-p" ||
                     option == "--seed" || option == "--weights" || option == "--threads" ||
                     option == "--device" || option == "--products";
  if (!known) refuse("[arguments] option: expected one of those of --help, got " + option);
  if (!value) refuse("[" + option + "] value: expected one, got none");
  if (option == "--text" || option == "--wav") settings->first.push_back({option == "--wav", value});
  if (option == "--system") settings->system = value;
  if (option == "--max-tokens") settings->generation.max_tokens = number_of<uint32_t>(option, value);
  if (option == "--temperature") settings->generation.temperature = number_of<double>(option, value);
  if (option == "--top-p") settings->generation.top_p = number_of<double>(option, value);
  if (option == "--seed") settings->generation.seed = number_of<uint64_t>(option, value);
  if (option == "--weights") settings->model.weights = weights_of(value);
  if (option == "--device") settings->model.device = value;
  if (option == "--products") settings->model.products = products_of(value);
  if (option == "--threads") settings->engine.threads = number_of<uint32_t>(option, value);
  return true;
}

Settings read_arguments(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (argument == "--version") {
      std::printf("earnest-cli %s %s\n", earnest_version(), earnest_build_info());
      std::exit(0);
    }
    if (argument.starts_with("-") && argument.size() > 1) {
      i += read_option(argument, i + 1 < argc ? argv[i + 1] : nullptr, &settings) ? 1 : 0;
    } else if (settings.folder.empty()) {
      settings.folder = argument;
    } else {
      refuse("[arguments] MODEL: expected one, got also " + argument);
    }
  }
  if (settings.folder.empty()) refuse("[arguments] MODEL: expected a folder, got none (--help says more)");
  return settings;
}

// ---- turns ----

std::atomic<bool> interrupted = false;

void on_interrupt(int) { interrupted = true; }

void complain() { std::fprintf(stderr, "earnest-cli: %s\n", earnest_last_error()); }

// Adds one part to the turn; says why where it cannot.
bool add(earnest_session* session, const Part& part) {
  if (!part.sound) {
    const auto& text = part.content;
    if (earnest_session_add_text(session, "user", text.data(), text.size()) == EARNEST_OK) return true;
    complain();
    return false;
  }
  std::ifstream file(part.content, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "earnest-cli: [wav] file: expected one that can be read, got %s\n",
                 part.content.c_str());
    return false;
  }
  const std::string wav((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (earnest_session_add_wav(session, "user", wav.data(), wav.size()) == EARNEST_OK) return true;
  complain();
  return false;
}

// What a model says must not steer the terminal: control characters but newline and tab become U+FFFD.
void write(FILE* out, const char* text, size_t bytes) {
  std::string shown;
  for (size_t i = 0; i < bytes; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c1 = byte == 0xC2 && i + 1 < bytes && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c1 || byte == 0x7F || (byte < 0x20 && byte != '\n' && byte != '\t')) {
      shown += "\xEF\xBF\xBD";
      i += c1 ? 1 : 0;
    } else {
      shown += text[i];
    }
  }
  std::fwrite(shown.data(), 1, shown.size(), out);
  std::fflush(out);
}

void show_stats(const earnest_generation* generation) {
  earnest_usage usage = EARNEST_USAGE_INIT;
  if (earnest_generation_get_usage(generation, &usage) != EARNEST_OK) return;
  std::fprintf(stderr,
               "[%llu tokens read, %llu of them cached, %llu of sound; %llu said, %llu of them thought; "
               "first after %.0f ms, all after %.0f ms]\n",
               static_cast<unsigned long long>(usage.prompt_tokens),
               static_cast<unsigned long long>(usage.cached_tokens),
               static_cast<unsigned long long>(usage.audio_tokens),
               static_cast<unsigned long long>(usage.completion_tokens),
               static_cast<unsigned long long>(usage.reasoning_tokens), usage.first_token_ms, usage.total_ms);
}

bool answer(earnest_session* session, const Settings& settings) {
  earnest_generation* started = nullptr;
  if (earnest_generation_start(session, &settings.generation, &started) != EARNEST_OK) {
    complain();
    return false;
  }
  const Generation generation(started);
  earnest_event event = EARNEST_EVENT_INIT;
  bool thinking = false;
  for (interrupted = false;;) {
    const earnest_status status = earnest_generation_next(generation.get(), 50, &event);
    if (interrupted) earnest_generation_cancel(generation.get());
    if (status == EARNEST_TIMEOUT) continue;
    if (status != EARNEST_OK) break;
    if (event.kind == EARNEST_EVENT_REASONING && !settings.quiet) {
      if (!thinking) std::fputs("(", stderr);
      thinking = true;
      write(stderr, event.text, event.text_bytes);
    } else if (event.kind == EARNEST_EVENT_REPLY) {
      if (thinking) std::fputs(")\n", stderr);
      thinking = false;
      write(stdout, event.text, event.text_bytes);
    } else if (event.kind == EARNEST_EVENT_DONE) {
      break;
    }
  }
  interrupted = false;
  if (thinking) std::fputs(")", stderr);
  write(stdout, "\n", 1);
  const bool failed = event.kind != EARNEST_EVENT_DONE || event.status != EARNEST_OK;
  if (failed) complain();
  if (settings.stats) show_stats(generation.get());
  return !failed;
}

// stdio, not streams: their reading goes on after a signal.
std::optional<std::string> read_line(bool terminal) {
  if (terminal) std::fputs("> ", stderr);
  char* memory = nullptr;
  size_t capacity = 0;
  const ssize_t bytes = getline(&memory, &capacity, stdin);
  const std::unique_ptr<char, Destroy<std::free>> owner(memory);
  if (bytes < 0) return std::nullopt;
  std::string line(memory, static_cast<size_t>(bytes));
  if (line.ends_with('\n')) line.pop_back();
  return line;
}

int converse(earnest_session* session, const Settings& settings) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  bool well = true, begun = false;
  if (!settings.first.empty()) {
    for (const Part& part : settings.first) {
      if (!add(session, part)) return 1;
    }
    well = answer(session, settings);
  }
  while (const auto line = read_line(terminal)) {
    if (*line == "/quit") break;
    if (line->starts_with("/wav ")) {
      begun = add(session, {true, line->substr(5)}) || begun;
      continue;
    }
    if (line->empty() && !begun) continue;
    if (!line->empty() && !add(session, {false, *line})) {
      well = false;
      continue;
    }
    begun = false;
    well = answer(session, settings) && well;
  }
  return well ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = read_arguments(argc, argv);
  earnest_model* model = nullptr;
  if (earnest_model_load(settings.folder.c_str(), &settings.model, &model) != EARNEST_OK) {
    return complain(), 1;
  }
  const Model model_owner(model);
  earnest_engine* engine = nullptr;
  if (earnest_engine_create(model, &settings.engine, &engine) != EARNEST_OK) return complain(), 1;
  const Engine engine_owner(engine);
  earnest_session* session = nullptr;
  if (earnest_session_create(engine, nullptr, &session) != EARNEST_OK) return complain(), 1;
  const Session session_owner(session);
  const std::string& system = settings.system;
  if (!system.empty() &&
      earnest_session_add_text(session, "system", system.data(), system.size()) != EARNEST_OK) {
    return complain(), 1;
  }
  struct sigaction action = {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: at the prompt it ends the reading
  sigaction(SIGINT, &action, nullptr);
  return converse(session, settings);
}
