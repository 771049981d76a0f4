// What the CUDA launches share: device and stream of the caller, scratch from PyTorch's allocator, checked calls.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <initializer_list>
#include <utility>

#include "checks.h"

namespace phasefast::cuda {

constexpr int kSharedBytes = 99 << 10;  // that a block of threads may have on every GPU since compute capability 8.0

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(what, ": ", cudaGetErrorString(status));
}

// The current stream of a device. Looked up in the library that torch has loaded: linked to it, this extension would
// not load under a torch without CUDA.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const auto getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Getter>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  if (!getter) fail("this torch has no CUDA streams");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// The matrix with the elements of each row side by side: itself, or a copy.
inline Tensor dense_rows(const Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.size(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

inline bool is_set(const char* variable, char value) {
  const char* given = std::getenv(variable);
  return given && given[0] == value;
}

// Whether the device runs code for sm_90a, and PHASEFAST_SM90=0 does not forbid it.
inline bool is_hopper(const Tensor& tensor) {
  if (is_set("PHASEFAST_SM90", '0')) return false;
  int major = 0, minor = 0;
  const int device = tensor.get_device_index();
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  return major == 9 && minor == 0;
}

// All tensors on the device of one of them.
inline void check_devices(const Tensor& like, std::initializer_list<std::pair<const char*, const Tensors*>> lists) {
  for (const auto& [name, tensors] : lists) {
    for (size_t i = 0; i < tensors->size(); ++i) {
      const Tensor& tensor = (*tensors)[i];
      if (tensor.is_cuda() && tensor.get_device_index() == like.get_device_index()) continue;
      fail(Name{name, static_cast<int64_t>(i)}, " is on another device than the rest, expected all on CUDA device ",
           like.get_device_index());
    }
  }
}

// Makes a tensor's device the current one, as long as it lives.
class Caller {
 public:
  explicit Caller(const Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_), stream_(current_stream(device_)) {
    check(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device_), "multiprocessor count");
  }
  cudaStream_t stream() const { return stream_; }
  int processors() const { return processors_; }

  // Uninitialised float32 of the stream: PyTorch's allocator hands it on in stream order.
  Tensor scratch(int64_t count) const {
    const int64_t sizes[] = {count}, strides[] = {1};
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, sizes, strides, aoti_torch_dtype_float32(),
                                                    aoti_torch_device_type_cuda(), device_, &handle));
    return Tensor(handle);
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int processors_ = 0;
};

}  // namespace phasefast::cuda
