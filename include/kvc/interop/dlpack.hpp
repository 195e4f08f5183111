// DLPack: the structs by which array libraries hand tensors to each other, declared here so that nothing need be
// installed.
//
// Specification: https://dmlc.github.io/dlpack/latest/c_api.html, version 1.1. The binary layout is stable within a
// major version. The names are those of the specification, in a namespace of kvc, so that a program can include
// dlpack.h as well: the structs are the same bytes, and a pointer to one is cast to a pointer to the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace interop {

/// The version of DLPack that a tensor was made for.
struct DLPackVersion {
  std::uint32_t major;
  std::uint32_t minor;
};
inline constexpr DLPackVersion dlpack_version{1, 1};

/// DLDeviceType: where memory lies. Those that kvc has caches on.
enum class DLDeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };

/// A device: its kind, and its number; 0 for the CPU.
struct DLDevice {
  DLDeviceType device_type = DLDeviceType::cpu;
  std::int32_t device_id = 0;
};

/// DLDataTypeCode, as far as kvc has such elements.
enum class DLDataTypeCode : std::uint8_t {
  signed_integer = 0,
  unsigned_integer = 1,
  floating_point = 2,
  bfloat = 4,
  float8_e4m3fn = 10
};

/// The type of one element.
struct DLDataType {
  DLDataTypeCode code;
  std::uint8_t bits;
  std::uint16_t lanes = 1;
  friend constexpr bool operator==(DLDataType, DLDataType) = default;
};

/// A tensor in memory of another owner. Element (i0, i1, ...) lies sum of i * strides elements behind the address.
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;    ///< [ndim]
  std::int64_t* strides;  ///< [ndim], in elements
  std::uint64_t byte_offset;
};

/// A tensor whose receiver calls `deleter(self)` once, when it is done with it.
struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  using Deleter = void(DLManagedTensorVersioned* self);
  Deleter* deleter;     ///< called once by the receiver, who does not use the tensor afterwards
  std::uint64_t flags;  ///< bit 0: read-only
  DLTensor dl_tensor;
};
inline constexpr std::uint64_t dlpack_read_only = 1;

// The layout of the specification on machines with pointers of 64 bits.
static_assert(sizeof(DLDataType) == 4 && sizeof(DLDevice) == 8 && sizeof(DLTensor) == 48);
static_assert(offsetof(DLTensor, device) == 8 && offsetof(DLTensor, ndim) == 16 && offsetof(DLTensor, dtype) == 20 &&
              offsetof(DLTensor, shape) == 24 && offsetof(DLTensor, strides) == 32 &&
              offsetof(DLTensor, byte_offset) == 40);
static_assert(offsetof(DLManagedTensorVersioned, manager_ctx) == 8 &&
              offsetof(DLManagedTensorVersioned, deleter) == 16 && offsetof(DLManagedTensorVersioned, flags) == 24 &&
              offsetof(DLManagedTensorVersioned, dl_tensor) == 32);

}  // namespace interop
}  // namespace v0
}  // namespace kvc
