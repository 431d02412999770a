// SPDX-License-Identifier: Apache-2.0
// The tier's functions by element type. Included inside the tier's own namespace, after attention_backward.h.

// V holds the rows of a block; Few, which may be shorter, those of units that fit into one of it, as in
// decoding.
template <typename V, typename Few, typename E, bool kPairs>
struct Functions {
  static bool few(const Unit& unit) { return unit.row_end - unit.row_begin <= kLanes<Few>; }

  static void forward(const Params& p, const Output& output, const Unit& unit, const Unit* next,
                      void* scratch) {
    if (few(unit)) return forward_whole<Few, E, kPairs>(p, output, unit, next, scratch);
    forward_whole<V, E, kPairs>(p, output, unit, next, scratch);
  }
  static void part(const Params& p, const Unit& unit, int64_t part, void* partial, void* scratch) {
    if (few(unit)) return forward_one_part<Few, E, kPairs>(p, unit, part, partial, scratch);
    forward_one_part<V, E, kPairs>(p, unit, part, partial, scratch);
  }
  static void join(const Params& p, const Output& output, const Unit& unit, void* partials,
                   size_t partial_bytes, void* scratch) {
    if (few(unit)) return forward_join<Few, E>(p, output, unit, partials, partial_bytes, scratch);
    forward_join<V, E>(p, output, unit, partials, partial_bytes, scratch);
  }
  static constexpr Backend kTable{&forward, &part, &join, &backward_unit<V, E, kPairs>,
                                  &write_key_gradients<V, E>};
};

template <typename T, typename E, bool kPairs>
static Backend functions_for() {
#if defined(__AVX512F__)
  using Few = std::conditional_t<sizeof(T) == 4, Vector<T, kVectorBytes / 2>, Vector<T>>;
#else
  using Few = Vector<T>;
#endif
  return Functions<Vector<T>, Few, E, kPairs>::kTable;
}
