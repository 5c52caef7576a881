// Tensors at the edge of an operator: shape checks, allocation, and products through torch.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "common/half.h"
#include "common/kl_weight.h"
#include "common/torch.h"

namespace lineavae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string to_string(std::initializer_list<int64_t> shape) {
  std::ostringstream text;
  text << '(';
  const char* separator = "";
  for (const int64_t size : shape) {
    text << separator << size;
    separator = ", ";
  }
  text << ')';
  return text.str();
}

// The public Python functions have told the user what was wrong already; these checks keep memory safe.
inline void check_shape(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t size : shape) equal = equal && tensor.size(i++) == size;
  STD_TORCH_CHECK(equal, op, ": ", name, " must have shape ", to_string(shape));
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " has another dtype");
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), op, ": ",
                  name, " is on another device");
}

// Of values, weights and incoming gradients: double for double inputs, float for all others.
inline ScalarType value_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Contiguous weights of the latents' KL, (groups, K), or (1, K) for all groups, for an input (..., K).
inline std::optional<Tensor> checked_kl_weight(const char* op, const std::optional<Tensor>& kl_weight,
                                               const Tensor& input, int64_t groups) {
  if (!kl_weight) return std::nullopt;
  const Tensor& weight = *kl_weight;
  STD_TORCH_CHECK(weight.dim() == 2, op, ": kl_weight must have two dimensions");
  check_shape(op, "kl_weight", weight, {weight.size(0) == 1 ? 1 : groups, input.size(input.dim() - 1)});
  STD_TORCH_CHECK(weight.scalar_type() == value_dtype(input), op, ": kl_weight must have the dtype of the value");
  STD_TORCH_CHECK(weight.is_cuda() == input.is_cuda() && weight.get_device_index() == input.get_device_index(), op,
                  ": kl_weight is on another device");
  return torch::stable::contiguous(weight);
}

inline Tensor empty(std::initializer_list<int64_t> shape, const Tensor& like) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape));
}

inline Tensor empty(std::initializer_list<int64_t> shape, const Tensor& like, ScalarType dtype) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), dtype);
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
