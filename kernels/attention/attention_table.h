// SPDX-License-Identifier: Apache-2.0
// The tier's functions by element type. Included inside the tier's own namespace, after attention_backward.h.

template <typename V, typename E, bool kPairs>
struct Functions {
  using Few = FewRows<V, E, kPairs>;
  using Many = ManyRows<V, E, kPairs>;
  static bool few(const Unit& unit) { return unit.row_end - unit.row_begin <= kFewRows; }

  static void forward(const Params& p, const Output& output, const Unit& unit, const Unit* next,
                      void* scratch) {
    (few(unit) ? forward_whole<Few> : forward_whole<Many>)(p, output, unit, next, scratch);
  }
  static void part(const Params& p, const Unit& unit, int64_t heads, int64_t part, void* partials,
                   size_t apart, void* scratch) {
    (few(unit) ? forward_one_part<Few> : forward_one_part<Many>)(p, unit, heads, part, partials, apart,
                                                                 scratch);
  }
  static void join(const Params& p, const Output& output, const Unit& unit, void* partials,
                   size_t partial_bytes, void* scratch) {
    (few(unit) ? forward_join<Few> : forward_join<Many>)(p, output, unit, partials, partial_bytes, scratch);
  }
  static constexpr Backend kTable{&forward, &part, &join, &backward_unit<V, E, kPairs>,
                                  &write_key_gradients<V, E>};
};

template <typename T, typename E, bool kPairs>
static Backend functions_for() {
  return Functions<Vector<T>, E, kPairs>::kTable;
}
