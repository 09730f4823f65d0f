#include "tests/comm/transport.hpp"

#include "base/gpu_module.hpp"
#include "comm/nccl/device_binding.hpp"
#include "comm/nccl/nccl_group.hpp"
#include "tests/comm/nccl_double.hpp"

namespace selfcal::testing_support {
namespace {

class HostTransport : public Transport {
 public:
  explicit HostTransport(Communicator ranks) : ranks_(std::move(ranks)) {}
  const Communicator& ranks() const override { return ranks_; }
  void broadcast(Bytes& data, int root) override { ranks_.broadcast(data, root); }
  void all_reduce(Bytes& data, Element element, ReduceOp op) override {
    if (element == Element::int64)
      ranks_.all_reduce(as<int64_t>(data), op);
    else
      ranks_.all_reduce(as<int32_t>(data), op);
  }
  void exchange(std::vector<Message>& messages) override {
    std::vector<Request> requests;
    for (auto& [kind, peer, data] : messages) {
      const bool sends = kind == DeviceMessage::Kind::send;
      requests.push_back(sends ? ranks_.send(data, peer, 1) : ranks_.receive(data, peer, 1));
    }
    for (Request& request : requests) request.wait();
  }
  std::unique_ptr<Transport> split(int color) override {
    return std::make_unique<HostTransport>(ranks_.split(color));
  }

 private:
  template <class T>
  static std::span<T> as(Bytes& data) {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
  Communicator ranks_;
};

class DeviceTransport : public Transport {
 public:
  DeviceTransport(Communicator ranks, std::shared_ptr<DeviceMemory> memory, int device)
      : memory_(std::move(memory)), device_(device), ranks_(std::move(ranks)) {}

  const Communicator& ranks() const override { return ranks_; }
  void broadcast(Bytes& data, int root) override {
    Copy copy(*this, data);
    ranks_.broadcast(copy.buffer, root).wait();
    copy.fetch(data);
  }
  void all_reduce(Bytes& data, Element element, ReduceOp op) override {
    Copy copy(*this, data);
    ranks_.all_reduce(copy.buffer, element, op).wait();
    copy.fetch(data);
  }
  void exchange(std::vector<Message>& messages) override {
    std::vector<std::unique_ptr<Copy>> copies;
    std::vector<DeviceMessage> on_device;
    for (auto& [kind, peer, data] : messages) {
      copies.push_back(std::make_unique<Copy>(*this, data));
      on_device.push_back({kind, peer, copies.back()->buffer});
    }
    ranks_.exchange(on_device).wait();
    for (size_t i = 0; i < messages.size(); ++i) copies[i]->fetch(messages[i].data);
  }
  std::unique_ptr<Transport> split(int color) override {
    return std::make_unique<DeviceTransport>(ranks_.split(color), memory_, device_);
  }

 private:
  /// A vector's bytes on the device.
  struct Copy {
    Copy(DeviceTransport& transport, const Bytes& data) : memory(*transport.memory_) {
      const auto bytes = static_cast<int64_t>(data.size());
      buffer = {memory.allocate(bytes), bytes, transport.device_,
                memory.current_stream(transport.device_)};
      memory.upload(buffer.data, data.data(), bytes);
    }
    ~Copy() { memory.release(buffer.data); }
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;
    void fetch(Bytes& data) const { memory.download(data.data(), buffer.data, buffer.bytes); }

    DeviceMemory& memory;
    DeviceBuffer buffer;
  };

  std::shared_ptr<DeviceMemory> memory_;
  int device_;
  Communicator ranks_;
};

NcclOptions options_for(int device) {
  NcclOptions options;
  options.device = device;
  options.chunk_bytes = test_chunk_bytes;
  options.timeout = std::chrono::seconds(60);
  return options;
}

class DoubleTransport : public DeviceTransport {
 public:
  DoubleTransport(const Communicator& world, std::shared_ptr<NcclDouble> vendor, int device)
      : DeviceTransport(Communicator::nccl(world, vendor, options_for(device)), vendor, device),
        vendor_(std::move(vendor)) {}
  std::vector<std::string> violations() const override { return vendor_->violations; }

 private:
  std::shared_ptr<NcclDouble> vendor_;
};

std::unique_ptr<Transport> double_transport(const Communicator& world) {
  auto vendor = std::make_shared<NcclDouble>();
  const auto bindings = bind_devices(world, *vendor);
  return std::make_unique<DoubleTransport>(world, vendor,
                                           bindings[static_cast<size_t>(world.rank())].device);
}

TransportOrReason real_transport(const Communicator& world) {
  const GpuModule module = GpuModule::load(SELFCAL_GPU_MODULE);
  if (!module.is_present()) return {nullptr, module.absence()};
  if (visible_gpus().count < world.size())
    return {nullptr, "fewer GPUs than ranks (" + std::to_string(visible_gpus().count) + ")"};
  std::shared_ptr<NcclCalls> calls = module.make<NcclCalls>("selfcal_gpu_nccl_calls");
  const int device = bind_devices(world, *calls)[static_cast<size_t>(world.rank())].device;
  return {
      std::make_unique<DeviceTransport>(Communicator::nccl(world, calls, options_for(device)),
                                        module.make<DeviceMemory>("selfcal_gpu_memory"), device),
      ""};
}

}  // namespace

TransportOrReason make_transport(const std::string& name) {
  const Communicator world = Communicator::world();
  if (name == "mpi") return {std::make_unique<HostTransport>(world), ""};
  if (name == "nccl_double") return {double_transport(world), ""};
  if (name == "nccl") return real_transport(world);
  if (world.size() > 1) return {nullptr, "local is for one rank"};
  return {std::make_unique<HostTransport>(Communicator::local()), ""};
}

}  // namespace selfcal::testing_support
