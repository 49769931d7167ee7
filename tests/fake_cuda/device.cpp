// A CUDA device for machines that have none. Its memory is the CPU's, and so are its kernels: an operator sees its tensors
// under the CPU's name while it runs. Before that it checks what a real device checks: that none of them is the CPU's.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <functional>

using at::Tensor;
using torch::jit::Stack;

namespace {

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet KEY(c10::DispatchKey::CUDA);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto data = c10::GetCPUAllocator()->allocate(bytes);
    auto release = data.get_deleter();
    void* start = data.get();
    return {start, data.release_context(), release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} memory;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &memory);

// The same elements, in the same memory, as a tensor of that device.
Tensor named(const Tensor& t, c10::Device device) {
  auto* owner = new c10::Storage(t.storage());
  c10::DataPtr data(owner->mutable_data(), owner, [](void* o) { delete static_cast<c10::Storage*>(o); }, device);
  c10::Storage storage({}, owner->nbytes(), std::move(data), c10::GetAllocator(device.type()), /*resizable=*/true);
  auto key = device.is_cuda() ? KEY : c10::DispatchKeySet(c10::DispatchKey::CPU);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), key, t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return out;
}

Tensor on_cpu(const Tensor& t) { return t.is_cuda() ? named(t, c10::kCPU) : t; }

struct Generator final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();
  Generator() : GeneratorImpl(DEVICE, KEY) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->inner = inner.clone();
    return copy;
  }
};

// One operator's call: its operands as the CPU's, what must not be among them, and its results as the device's.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack& stack) : op_(op), stack_(stack) {}

  void run() {
    const auto& arguments = op_.schema().arguments();
    const size_t first = stack_.size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); i++) lend(stack_[first + i], arguments[i]);
    TORCH_CHECK(!device_ || host_ < 0, "Expected all tensors to be on the same device, but found at least two devices, ",
                "cuda:0 and cpu! (", name(), ", argument ", host_ < 0 ? "" : arguments[host_].name(), ")");
    op_.callBoxed(&stack_);
    for (auto& [own, lent] : lent_) keep_up(own, lent);
    for (size_t i = stack_.size() - op_.schema().returns().size(); i < stack_.size(); i++) take_back(stack_[i]);
  }

 private:
  std::string name() const { return toString(op_.operator_name()); }

  // A number may be the CPU's, unless it is written to; so may indices, which come in an optional list.
  void lend(c10::IValue& value, const c10::Argument& argument) {
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    auto one = [&](const Tensor& t, bool may_be_host = false) {
      if (t.defined() && t.is_cuda()) {
        device_ = true;
        return lent_.emplace_back(t, on_cpu(t)).second;
      }
      if (t.defined() && !may_be_host && (t.dim() > 0 || written)) host_ = *op_.schema().argumentIndexWithName(argument.name());
      return t;
    };
    if (value.isTensor()) {
      value = one(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> lent;
      for (const Tensor& t : value.toTensorVector()) lent.push_back(one(t));
      value = std::move(lent);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> lent;
      for (std::optional<Tensor> t : value.toOptionalTensorList()) lent.push_back(t ? std::optional(one(*t, true)) : t);
      value = std::move(lent);
    } else if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu' (", name(), ")");
      device_ = true;
      value = static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = c10::Device(c10::kCPU);
    }
  }

  // What the operator did to an operand's shape, or memory, it did to the lent one.
  static void keep_up(const Tensor& own, const Tensor& lent) {
    auto* impl = own.unsafeGetTensorImpl();
    if (lent.storage().data() != own.storage().data()) impl->set_storage_keep_dtype(named(lent, DEVICE).storage());
    if (lent.sizes() != own.sizes() || lent.strides() != own.strides() || lent.storage_offset() != own.storage_offset())
      impl->set_sizes_and_strides(lent.sizes(), lent.strides(), lent.storage_offset());
  }

  void take_back(c10::IValue& value) {
    auto one = [&](const Tensor& t) {
      for (auto& [own, lent] : lent_)
        if (lent.is_same(t)) return own;
      return t.defined() && t.device().is_cpu() ? named(t, DEVICE) : t;
    };
    if (value.isTensor()) {
      value = one(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> back;
      for (const Tensor& t : value.toTensorVector()) back.push_back(one(t));
      value = std::move(back);
    }
  }

  const c10::OperatorHandle& op_;
  Stack& stack_;
  std::vector<std::pair<Tensor, Tensor>> lent_;
  bool device_ = false;
  int host_ = -1;  // the argument that is the CPU's, if there is one
};

void run(const c10::OperatorHandle& op, Stack* stack) { Call(op, *stack).run(); }

at::ScalarType or_default(std::optional<at::ScalarType> dtype) { return dtype.value_or(at::get_default_dtype_as_scalartype()); }

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEY, or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEY, or_default(dtype));
}

Tensor& copy_(Tensor& to, const Tensor& from, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor& set_at(Tensor& t, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  TORCH_CHECK(storage.device() == t.device(), "Expected a storage of ", t.device(), " but found one of ", storage.device());
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return t;
}

Tensor& set_storage(Tensor& t, at::Storage storage) {
  const auto elements = static_cast<int64_t>(storage.nbytes() / t.itemsize());
  return set_at(t, std::move(storage), 0, {elements}, {1});
}

Tensor& set_tensor(Tensor& t, const Tensor& other) {
  return set_at(t, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Stream only() const { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace

namespace at {

struct Hooks final : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Generator getNewGenerator(DeviceIndex = -1) const override { return make_generator<::Generator>(); }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);

}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy_);
  library.impl("set_.source_Storage_storage_offset", set_at);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Tensor", set_tensor);
}

// What has a kernel for CUDA in bitsandbytes. Its plain kernels, for unknown devices, would come before the fallback.
TORCH_LIBRARY_IMPL(bitsandbytes, CUDA, library) {
  for (const char* name : {"quantize_4bit", "dequantize_4bit", "dequantize_4bit.out", "quantize_blockwise",
                           "dequantize_blockwise", "dequantize_blockwise.out", "gemm_4bit", "gemv_4bit",
                           "gemv_4bit.out"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}
