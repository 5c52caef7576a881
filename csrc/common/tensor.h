// Tensors at the edge of an operator: shape checks, allocation, and products through torch.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "common/device.h"
#include "common/half.h"
#include "common/kl_weight.h"
#include "common/torch.h"

namespace lineavae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape(tensor.dim());
  for (int64_t i = 0; i < tensor.dim(); ++i) shape[i] = tensor.size(i);
  return shape;
}

inline std::string to_string(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < shape.size(); ++i) text << (i > 0 ? ", " : "") << shape[i];
  text << ')';
  return text.str();
}

// Of values, weights and incoming gradients: double for double inputs, float for all others.
inline ScalarType value_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The sizes of an argument that says how large the others are.
template <int kDims>
std::array<int64_t, kDims> sizes_of(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == kDims, op, ": ", name, " must have ", kDims, " dimensions, got shape ",
                  to_string(shape_of(tensor)));
  std::array<int64_t, kDims> sizes;
  for (int i = 0; i < kDims; ++i) sizes[i] = tensor.size(i);
  return sizes;
}

// The size that a dimension must have which may be 1 instead: what is the same for all is there once.
inline int64_t one_or(int64_t size, const Tensor& tensor, int64_t dim = 0) {
  return tensor.dim() > dim && tensor.size(dim) == 1 ? 1 : size;
}

// Gives the arguments of a raw op, contiguous, once they are what they must be. The public Python functions have told
// the user what was wrong already; these checks keep memory safe.
class Checked {
 public:
  // All are on the device of `like`, and where nothing else is said of its dtype.
  Checked(const char* op, const Tensor& like) : op_(op), like_(like) {}

  Tensor operator()(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) const {
    return (*this)(name, tensor, shape, like_.scalar_type());
  }
  Tensor operator()(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                    ScalarType dtype) const {
    bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
    int64_t i = 0;
    for (const int64_t size : shape) equal = equal && tensor.size(i++) == size;
    STD_TORCH_CHECK(equal, op_, ": ", name, " must have shape ", to_string(shape), ", got ",
                    to_string(shape_of(tensor)));
    STD_TORCH_CHECK(tensor.scalar_type() == dtype, op_, ": ", name, " must be ", dtype, ", got ", tensor.scalar_type());
    STD_TORCH_CHECK(tensor.is_cuda() == like_.is_cuda() && tensor.get_device_index() == like_.get_device_index(), op_,
                    ": ", name, " is on another device");
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  }

  // Weights of the latents' KL, (groups, K), or (1, K) for all groups.
  std::optional<Tensor> kl_weight(const std::optional<Tensor>& weight, int64_t groups, int64_t latents) const {
    if (!weight) return std::nullopt;
    return (*this)("kl_weight", *weight, {one_or(groups, *weight), latents}, value_dtype(like_));
  }

 private:
  const char* op_;
  const Tensor& like_;
};

inline Tensor empty(const std::vector<int64_t>& shape, const Tensor& like, std::optional<ScalarType> dtype = {}) {
  return torch::stable::new_empty(like, shape, dtype);
}

// Work space for the sums of pieces of rows (common/pieces.h), or `values`, one of each row, where that is the piece.
inline Tensor piece_sums(const Tensor& values, int64_t pieces) {
  return pieces > 1 ? empty({values.numel(), pieces}, values) : values;
}

// The scalar types of torch and of the kernels have the same layout.
template <class T>
const T* input(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* output(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
KLWeight<T> input_kl_weight(const std::optional<Tensor>& kl_weight) {
  return kl_weight ? KLWeight<T>{input<accumulate_t<T>>(*kl_weight), kl_weight->size(0) == 1} : KLWeight<T>{};
}

inline Tensor transposed(const Tensor& matrices) { return torch::stable::transpose(matrices, -2, -1); }

// (M, n, k) x (M, k, m) -> (M, n, m), contiguous, through torch's bmm; a first dimension of 1 is shared. (bmm is as
// fast as mm for one model.)
inline Tensor product(const Tensor& left, const Tensor& right) {
  if (left.size(0) != right.size(0)) return torch::stable::contiguous(torch::stable::matmul(left, right));
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left), torch::stable::detail::from(right)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "", stack.data(), TORCH_TARGET_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// (M, n, k) x (M, k) -> (M, n)
inline Tensor product_with_vector(const Tensor& matrices, const Tensor& vectors) {
  return torch::stable::squeeze(product(matrices, torch::stable::unsqueeze(vectors, -1)), -1);
}

// Calls f<T>(): one template argument for the dtypes that products exist in.
template <class F>
void dispatch_floating(const char* op, const Tensor& tensor, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      f.template operator()<float>();
      break;
    case ScalarType::Double:
      f.template operator()<double>();
      break;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32 or float64");
  }
}

// As dispatch_floating, and for half types.
template <class F>
void dispatch_all_floating(const char* op, const Tensor& tensor, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      f.template operator()<Float16>();
      break;
    case ScalarType::BFloat16:
      f.template operator()<BFloat16>();
      break;
    default:
      dispatch_floating(op, tensor, f);
  }
}

}  // namespace lineavae
