// A CUDA driver that answers, records and runs nothing, so that launches are tested where no GPU is.
//
// It knows three devices, keeps each thread's stack of contexts, reads from a cubin (or PTX) how large each kernel's
// parameters are, and refuses what a driver would: a launch without a context, on more shared memory than the
// kernel was allowed, on a grid that its clusters do not divide. driver.py has what is exported for the tests.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Status = int;
constexpr Status ok = 0, invalid_value = 1, invalid_device = 101, invalid_context = 201, not_found = 500,
                 cooperative_too_large = 720, invalid_cluster = 912;
const std::map<Status, const char*> names = {
    {ok, "CUDA_SUCCESS"},
    {invalid_value, "CUDA_ERROR_INVALID_VALUE"},
    {invalid_device, "CUDA_ERROR_INVALID_DEVICE"},
    {invalid_context, "CUDA_ERROR_INVALID_CONTEXT"},
    {not_found, "CUDA_ERROR_NOT_FOUND"},
    {cooperative_too_large, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"},
    {invalid_cluster, "CUDA_ERROR_INVALID_CLUSTER_SIZE"},
};

// What is asked of a device, by CUdevice_attribute's numbers.
using Attributes = std::map<int, int>;
Attributes attributes(int major, int minor, int multiprocessors, int shared, int of_all, int clusters) {
    return {{1, 1024},   {8, 49152},      {10, 32},  {16, multiprocessors}, {39, 2048},    {75, major},
            {76, minor}, {81, of_all},    {95, 1},   {97, shared},          {120, clusters}, {82, 65536}};
}
struct Device {
    const char* name;
    Attributes attributes;
};
const std::vector<Device> devices = {
    {"NVIDIA H200", attributes(9, 0, 132, 232448, 233472, 1)},
    {"NVIDIA A100", attributes(8, 0, 108, 166912, 167936, 0)},
    {"NVIDIA T4", attributes(7, 5, 40, 65536, 65536, 0)},
};
struct Context {
    int device;
};
Context contexts[] = {{0}, {1}, {2}};
thread_local std::vector<Context*> stack;
int current() { return stack.empty() || stack.back() == nullptr ? -1 : stack.back()->device; }

struct Kernel {
    std::string name;
    void* library;
    std::vector<int> sizes;          // bytes of each parameter
    std::map<int, int> most_shared;  // what a launch may have, by device
};
struct Library {
    std::map<std::string, Kernel> kernels;
};

// What the tests set, and what they read.
std::mutex lock;
bool recording = true;
long launches;
int most_clusters = -1;  // active at one time; -1: one block on each multiprocessor
bool refuse_cooperative, refuse_all;
std::string events;
std::string told;

void note(const std::string& event) {
    const std::lock_guard<std::mutex> guard(lock);
    events += (events.empty() ? "" : ",\n") + event;
}
template <class T>
std::string field(const char* key, const T& value) {
    std::ostringstream text;
    text << ", \"" << key << "\": " << value;
    return text.str();
}
std::string quoted(const std::string& text) { return '"' + text + '"'; }
std::string event(const char* call) {
    return std::string("{\"call\": ") + quoted(call) + field("context", current());
}

// A number of a cubin, wherever it stands.
template <class T>
T at(const char* place) {
    T value;
    std::memcpy(&value, place, sizeof value);
    return value;
}

// The sizes of a kernel's parameters: the section .nv.info.KERNEL is a list of (format, attribute, size or value),
// and attribute 0x17 (EIATTR_KPARAM_INFO) has a parameter's number, and its size in the upper 14 bits of a word.
std::map<std::string, std::vector<int>> parameters(const char* cubin) {
    std::map<std::string, std::vector<int>> found;
    const char* headers = cubin + at<std::uint64_t>(cubin + 40);
    const int size = at<std::uint16_t>(cubin + 58), count = at<std::uint16_t>(cubin + 60);
    const char* texts = headers + at<std::uint16_t>(cubin + 62) * size;
    const char* text = cubin + at<std::uint64_t>(texts + 24);
    const std::string prefix = ".nv.info.";
    for (int i = 0; i < count; ++i) {
        const char* header = headers + i * size;
        const std::string name = text + at<std::uint32_t>(header);
        if (name.compare(0, prefix.size(), prefix) != 0) continue;
        std::vector<int>& sizes = found[name.substr(prefix.size())];
        const char* place = cubin + at<std::uint64_t>(header + 24);
        const char* end = place + at<std::uint64_t>(header + 32);
        while (place < end) {
            const int format = place[0], attribute = place[1], length = at<std::uint16_t>(place + 2);
            place += 4;
            if (format != 4) continue;  // the value is in the head
            if (attribute == 0x17) {
                const std::size_t number = at<std::uint16_t>(place + 4);
                if (sizes.size() <= number) sizes.resize(number + 1);
                sizes[number] = static_cast<int>(at<std::uint32_t>(place + 8) >> 18);
            }
            place += length;
        }
    }
    return found;
}

// The same of PTX: the types of the parameters that an entry declares.
std::map<std::string, std::vector<int>> declared(const std::string& ptx) {
    std::map<std::string, std::vector<int>> found;
    const std::map<char, int> bytes = {{'8', 1}, {'6', 2}, {'2', 4}, {'4', 8}};  // by a type's last digit
    const std::string begin = ".entry ", parameter = ".param .";
    for (std::size_t place = ptx.find(begin); place != std::string::npos; place = ptx.find(begin, place)) {
        place += begin.size();
        const std::size_t open = ptx.find_first_of(" (\n{", place);
        std::vector<int>& sizes = found[ptx.substr(place, open - place)];
        const std::size_t close = ptx.find('{', open);
        for (std::size_t each = ptx.find(parameter, open); each < close; each = ptx.find(parameter, each + 1)) {
            sizes.push_back(bytes.at(ptx[ptx.find(' ', each + parameter.size()) - 1]));
        }
    }
    return found;
}

struct Config {
    unsigned grid[3], block[3], shared;
    void* stream;
    void* attributes;
    unsigned count;
};
struct Attribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        unsigned numbers[3];
    };
};
struct Wishes {
    unsigned cluster = 1, cooperative = 0;
    std::string others;
};
Wishes wishes(const Config& config) {
    Wishes found;
    const auto* each = static_cast<const Attribute*>(config.attributes);
    for (unsigned i = 0; i < config.count; ++i, ++each) {
        if (each->id == 2) {
            found.cooperative = each->numbers[0];
        } else if (each->id == 4) {
            found.cluster = each->numbers[0] * each->numbers[1] * each->numbers[2];
        } else {
            found.others += (found.others.empty() ? "" : ", ") + std::to_string(each->id);
        }
    }
    return found;
}

int active_clusters(int device, unsigned size) {
    return most_clusters >= 0 ? most_clusters : devices[device].attributes.at(16) / static_cast<int>(size);
}

Status launched(const Config& config, Kernel& kernel, void** given) {
    const int device = current();
    if (device < 0) return invalid_context;
    if (refuse_all) return invalid_value;
    const Wishes wish = wishes(config);
    const auto allowed = kernel.most_shared.find(device);
    const unsigned most = allowed == kernel.most_shared.end() ? 49152 : allowed->second;
    if (config.shared > most || (given == nullptr && !kernel.sizes.empty())) return invalid_value;
    if (config.grid[0] % wish.cluster != 0) return invalid_value;
    if (wish.cluster > 1 && (wish.cluster > 8 || devices[device].attributes.at(120) == 0)) return invalid_cluster;
    if (wish.cluster > 1 && active_clusters(device, wish.cluster) < 1) return invalid_cluster;
    const unsigned resident = devices[device].attributes.at(16);
    if (wish.cooperative != 0 && (refuse_cooperative || config.grid[0] > resident)) return cooperative_too_large;
    const std::lock_guard<std::mutex> guard(lock);
    ++launches;
    if (!recording) return ok;
    std::string arguments, sizes;
    for (std::size_t i = 0; i < kernel.sizes.size(); ++i) {
        const char* comma = i == 0 ? "" : ", ";
        std::uint64_t bits = 0;
        std::memcpy(&bits, given[i], std::min<std::size_t>(sizeof bits, kernel.sizes[i]));
        arguments += comma + std::to_string(bits);
        sizes += comma + std::to_string(kernel.sizes[i]);
    }
    const auto three = [](const unsigned* sides) {
        return "[" + std::to_string(sides[0]) + ", " + std::to_string(sides[1]) + ", " + std::to_string(sides[2]) + "]";
    };
    std::string text = event("launch") + field("kernel", quoted(kernel.name)) + field("grid", three(config.grid));
    text += field("block", three(config.block)) + field("shared", config.shared) + field("cluster", wish.cluster);
    text += field("cooperative", wish.cooperative) + field("others", "[" + wish.others + "]");
    text += field("stream", reinterpret_cast<std::uintptr_t>(config.stream));
    text += field("sizes", "[" + sizes + "]") + field("arguments", "[" + arguments + "]") + "}";
    events += (events.empty() ? "" : ",\n") + text;
    return ok;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// for the tests

// What was called since it was last asked, as the inside of a JSON list.
const char* recorded() {
    const std::lock_guard<std::mutex> guard(lock);
    told.swap(events);
    events.clear();
    return told.c_str();
}
long launch_count() { return launches; }
void set_recording(int on) { recording = on != 0; }
void set_clusters(int most) { most_clusters = most; }
void set_cooperative(int allowed) { refuse_cooperative = allowed == 0; }
void set_refusing(int on) { refuse_all = on != 0; }

// the driver

Status cuInit(unsigned) { return ok; }
Status cuDriverGetVersion(int* version) { return *version = 13000, ok; }
Status cuGetErrorName(Status status, const char** text) {
    const auto found = names.find(status);
    *text = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return ok;
}
Status cuGetErrorString(Status, const char** text) { return *text = "refused by the recording driver", ok; }
Status cuGetExportTable(const void** table, const void*) { return *table = nullptr, not_found; }  // NVRTC asks

Status cuDeviceGetCount(int* count) { return *count = static_cast<int>(devices.size()), ok; }
Status cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= static_cast<int>(devices.size())) return invalid_device;
    return *device = ordinal, ok;
}
Status cuDeviceGetName(char* name, int length, int device) {
    return std::snprintf(name, length, "%s", devices[device].name), ok;
}
Status cuDeviceGetUuid_v2(char* bytes, int device) { return std::memset(bytes, 7 + device, 16), ok; }
Status cuDeviceGetAttribute(int* value, int attribute, int device) {
    const auto found = devices[device].attributes.find(attribute);
    return *value = found == devices[device].attributes.end() ? 0 : found->second, ok;
}
Status cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts[device], ok; }
Status cuDevicePrimaryCtxRelease_v2(int) { return ok; }
Status cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, ok; }

Status cuCtxGetCurrent(void** context) { return *context = stack.empty() ? nullptr : stack.back(), ok; }
Status cuCtxSetCurrent(void* context) {
    if (stack.empty()) stack.push_back(nullptr);
    stack.back() = static_cast<Context*>(context);
    return note(event("set") + "}"), ok;
}
Status cuCtxPushCurrent_v2(void* context) {
    stack.push_back(static_cast<Context*>(context));
    return note(event("push") + "}"), ok;
}
Status cuCtxPopCurrent_v2(void** context) {
    if (stack.empty()) return invalid_context;
    if (context != nullptr) *context = stack.back();
    stack.pop_back();
    return note(event("pop") + "}"), ok;
}
Status cuCtxGetDevice(int* device) { return current() < 0 ? invalid_context : (*device = current(), ok); }
Status cuCtxGetDevice_v2(int* device, void* context) { return *device = static_cast<Context*>(context)->device, ok; }
Status cuCtxGetId(void* context, unsigned long long* id) {
    return *id = context == nullptr ? current() + 1 : static_cast<Context*>(context)->device + 1, ok;
}
Status cuCtxGetApiVersion(void*, unsigned* version) { return *version = 13000, ok; }
Status cuCtxSynchronize() { return ok; }

Status cuStreamGetCtx(void*, void** context) { return *context = stack.empty() ? &contexts[0] : stack.back(), ok; }
Status cuStreamGetCtx_v2(void* stream, void** context, void** green) {
    if (green != nullptr) *green = nullptr;
    return cuStreamGetCtx(stream, context);
}
Status cuStreamGetDevice(void*, int* device) { return *device = current() < 0 ? 0 : current(), ok; }
Status cuStreamGetFlags(void*, unsigned* flags) { return *flags = 0, ok; }
Status cuStreamIsCapturing(void*, int* capturing) { return *capturing = 0, ok; }
Status cuStreamSynchronize(void*) { return ok; }

Status cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    const char* text = static_cast<const char*>(code);
    const bool cubin = std::memcmp(text, "\x7f" "ELF", 4) == 0;
    auto* loaded = new Library;
    for (auto& [name, sizes] : cubin ? parameters(text) : declared(text)) loaded->kernels[name] = {name, loaded, sizes, {}};
    return *library = loaded, ok;
}
Status cuLibraryUnload(void*) { return ok; }  // kernels are looked at later
Status cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    auto& kernels = static_cast<Library*>(library)->kernels;
    const auto found = kernels.find(name);
    return found == kernels.end() ? not_found : (*kernel = &found->second, ok);
}
Status cuKernelGetLibrary(void** library, void* kernel) { return *library = static_cast<Kernel*>(kernel)->library, ok; }
Status cuKernelGetFunction(void** function, void* kernel) { return *function = kernel, ok; }
Status cuKernelGetName(const char** name, void* kernel) {
    return *name = static_cast<Kernel*>(kernel)->name.c_str(), ok;
}
Status cuKernelGetAttribute(int* value, int, void*, int) { return *value = 1024, ok; }
Status cuKernelSetAttribute(int attribute, int value, void* kernel, int device) {
    auto& which = *static_cast<Kernel*>(kernel);
    if (attribute != 8 || value > devices[device].attributes.at(97)) return invalid_value;
    which.most_shared[device] = value;
    return note(event("allow") + field("kernel", quoted(which.name)) + field("bytes", value) + "}"), ok;
}
Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int, std::size_t) { return *blocks = 1, ok; }
Status cuOccupancyMaxActiveClusters(int* clusters, void*, const Config* config) {
    return *clusters = active_clusters(current() < 0 ? 0 : current(), wishes(*config).cluster), ok;
}

Status cuLaunchKernelEx(const Config* config, void* kernel, void** given, void**) {
    return launched(*config, *static_cast<Kernel*>(kernel), given);
}
Status cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** given, void**) {
    return launched({{gx, gy, gz}, {bx, by, bz}, shared, stream, nullptr, 0}, *static_cast<Kernel*>(kernel), given);
}

// A function by its name; of its versions, the one that is here.
Status cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int* status) {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    static void* own = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = nullptr;
    for (const char* version : {"", "_v2", "_v3"}) {
        if (*function == nullptr) *function = dlsym(own, (std::string(name) + version).c_str());
    }
    if (status != nullptr) *status = *function == nullptr ? 1 : 0;
    return *function == nullptr ? not_found : ok;
}
Status cuGetProcAddress(const char* name, void** function, int version, std::uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
#pragma GCC visibility pop
