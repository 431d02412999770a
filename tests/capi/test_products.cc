// SPDX-License-Identifier: Apache-2.0
// Who multiplies, as a caller chooses it: on the CPU, and where a build has CUDA (a GPU, or the emulator with
// the library that stands for the vendor's there).
#include <cstddef>
#include <cstdlib>

#include "tests/capi/talk.h"

using namespace talk;

namespace {

earnest_model_params asking(const char* device, earnest_products products) {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  params.weights = EARNEST_WEIGHTS_BFLOAT16;
  params.device = device;
  params.products = products;
  return params;
}

earnest_status load(const char* folder, const earnest_model_params& params, Model* model) {
  earnest_model* made = nullptr;
  const earnest_status status = earnest_model_load(folder, &params, &made);
  CHECK((status == EARNEST_OK) == (made != nullptr));
  *model = Model(made);
  return status;
}

bool says(const Model& model, const char* part) {
  return std::strstr(earnest_model_info(model.get()), part) != nullptr;
}

}  // namespace

TEST(on_the_cpu_products_are_ours) {
  Model model;
  CHECK_OK(load(TINY_MODEL, asking("cpu", EARNEST_PRODUCTS_OURS), &model));
  CHECK(says(model, "\"products\":\"ours\""));
  CHECK(load(TINY_MODEL, asking(nullptr, EARNEST_PRODUCTS_VENDOR), &model) == EARNEST_UNSUPPORTED);
  CHECK(std::string(earnest_last_error()) == "[engine] products: expected ours on cpu, got vendor");
}

TEST(what_is_no_choice_is_refused_and_an_older_callers_struct_is_taken) {
  Model model;
  earnest_model_params params = asking("cpu", EARNEST_PRODUCTS_OURS);
  CHECK(params.products == EARNEST_PRODUCTS_OURS && params.reserved == 0);
  const int none = 2;
  std::memcpy(&params.products, &none, sizeof none);
  CHECK(load(TINY_MODEL, params, &model) == EARNEST_INVALID_ARGUMENT);
  CHECK(std::string(earnest_last_error()) == "[load] products: expected one of earnest_products, got 2");
  params.struct_size = offsetof(earnest_model_params, products);  // behind which nobody looks
  CHECK_OK(load(TINY_MODEL, params, &model));
  params = asking("cpu", EARNEST_PRODUCTS_OURS);
  params.reserved = 1;
  CHECK(load(TINY_MODEL, params, &model) == EARNEST_UNSUPPORTED);
  CHECK(std::string(earnest_last_error()) == "[load] reserved: expected 0, got 1");
}

TEST(on_a_gpu_they_are_the_vendors_where_its_library_is_and_else_refused) {
  Model model;
  if (load(WIDE_MODEL, asking("cuda", EARNEST_PRODUCTS_OURS), &model) != EARNEST_OK) {
    CHECK(std::strstr(earnest_last_error(), "[engine] device: expected"));
    std::printf("     not on a GPU: %s\n", earnest_last_error());
    return;
  }
  CHECK(says(model, "\"products\":\"ours\""));
  const earnest_model_params vendor = asking("cuda", EARNEST_PRODUCTS_VENDOR);
  setenv("EARNEST_CUBLASLT", "/of/no/such/name.so", 1);
  CHECK(load(WIDE_MODEL, vendor, &model) == EARNEST_UNSUPPORTED);
  CHECK(std::strstr(earnest_last_error(), "[engine] products: expected ours (vendor needs cuBLASLt"));
  unsetenv("EARNEST_CUBLASLT");
#if defined(EARNEST_FAKE_CUBLASLT)
  setenv("EARNEST_CUBLASLT", EARNEST_FAKE_CUBLASLT, 1);
#endif
  if (load(WIDE_MODEL, vendor, &model) == EARNEST_OK) CHECK(says(model, "\"products\":\"vendor\""));
}
