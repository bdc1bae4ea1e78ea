// A block of elements of one image, as step_block() takes it: compute values, and the gradient in
// its own type.
template <class C, class G>
struct Block {
  const C *adv, *images, *domain;
  const G* grad;
  const C* momentum;   // null: zero
  C* momentum_out;     // null: not kept
  C* out;
  int64_t size;        // at most kBlock
  const G* next_grad;  // the same place of the next image's gradient, to fetch early; or null
};
