// Drives a plugin library as TensorRT does, without any TensorRT library: opens it, gives it a logger, and calls its
// interfaces with TensorRT's own structures, which harness.py lays out. Knows nothing of what is behind them.

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <deque>
#include <string>

using namespace nvinfer1;

#define HARNESS extern "C" __attribute__((visibility("default")))

namespace {

// Messages since they were last asked for, one a line.
struct Logger final : ILogger, ILoggerFinder {
    std::string lines, told;

    void log(Severity severity, const AsciiChar* text) noexcept override {
        lines += std::to_string(static_cast<int>(severity)) + ' ' + text + '\n';
    }
    ILogger* findLogger() override { return this; }
} logger;

std::string error;
IPluginCreatorV3One* const* creators;

// Expressions of dimensions: constants, and others that are known only at run time. TensorRT makes them behind
// `mImpl`, which is for those who derive.
struct Expression final : IDimensionExpr, apiv::VDimensionExpr {
    const int64_t value;  // -1 where it is not known

    explicit Expression(int64_t v) : value(v) { IDimensionExpr::mImpl = this; }
    bool isConstant() const override { return value >= 0; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
};

struct Builder final : IExprBuilder, apiv::VExprBuilder {
    std::deque<Expression> made;

    Builder() { IExprBuilder::mImpl = this; }
    const IDimensionExpr* constant(int64_t value) override { return &made.emplace_back(value); }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
        return &made.emplace_back(-1);
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
        return &made.emplace_back(-1);
    }
};

template <class Interface>
Interface& of(IPluginV3* plugin, PluginCapabilityType type) {
    return *static_cast<Interface*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneCore& core(IPluginV3* plugin) { return of<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild& build(IPluginV3* plugin) { return of<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime& runtime(IPluginV3* plugin) {
    return of<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

}  // namespace

// The number of creators, or -1; then `harness_error` says why.
HARNESS int harness_open(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    auto* const get = library ? dlsym(library, "getCreators") : nullptr;
    auto* const find = library ? dlsym(library, "setLoggerFinder") : nullptr;
    if (!get || !find) {
        error = dlerror();
        return -1;
    }
    reinterpret_cast<void (*)(ILoggerFinder*)>(find)(&logger);
    int32_t count = 0;
    const auto found = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(get)(count);
    creators = reinterpret_cast<IPluginCreatorV3One* const*>(found);  // each derives from the other as its first base
    return count;
}
HARNESS const char* harness_error() { return error.c_str(); }
HARNESS const char* harness_log() {
    logger.told = std::move(logger.lines);
    logger.lines.clear();
    return logger.told.c_str();
}

HARNESS const char* creator_text(int index, int which) {
    IPluginCreatorV3One& creator = *creators[index];
    const char* const texts[] = {creator.getPluginName(), creator.getPluginVersion(), creator.getPluginNamespace()};
    return texts[which];
}
HARNESS const PluginFieldCollection* creator_fields(int index) { return creators[index]->getFieldNames(); }
HARNESS IPluginV3* creator_create(int index, const char* name, const PluginFieldCollection* fields, int phase) {
    return creators[index]->createPlugin(name, fields, static_cast<TensorRTPhase>(phase));
}

HARNESS const char* plugin_text(IPluginV3* plugin, int which) {
    const char* const texts[] = {core(plugin).getPluginName(), core(plugin).getPluginVersion(),
                                 core(plugin).getPluginNamespace(), build(plugin).getTimingCacheID(),
                                 build(plugin).getMetadataString()};
    return texts[which];
}
HARNESS IPluginV3* plugin_clone(IPluginV3* plugin) { return plugin->clone(); }
HARNESS IPluginV3* plugin_attach(IPluginV3* plugin) { return runtime(plugin).attachToContext(nullptr); }
HARNESS void plugin_delete(IPluginV3* plugin) { delete plugin; }
HARNESS const PluginFieldCollection* plugin_fields(IPluginV3* plugin) {
    return runtime(plugin).getFieldsToSerialize();
}

HARNESS int plugin_outputs(IPluginV3* plugin) { return build(plugin).getNbOutputs(); }
HARNESS int plugin_types(IPluginV3* plugin, DataType* output, const DataType* inputs, int count) {
    return build(plugin).getOutputDataTypes(output, 1, inputs, count);
}
// output: -1 where a dimension is not a constant.
HARNESS int plugin_shapes(IPluginV3* plugin, const Dims* inputs, int count, Dims* output) {
    Builder builder;
    DimsExprs given[8], found{};
    for (int i = 0; i < count; ++i) {
        given[i].nbDims = inputs[i].nbDims;
        for (int j = 0; j < inputs[i].nbDims; ++j) given[i].d[j] = builder.constant(inputs[i].d[j]);
    }
    const int status = build(plugin).getOutputShapes(given, count, nullptr, 0, &found, 1, builder);
    output->nbDims = found.nbDims;
    for (int j = 0; j < found.nbDims; ++j) output->d[j] = found.d[j]->getConstantValue();
    return status;
}
HARNESS int plugin_supports(IPluginV3* plugin, int place, const DynamicPluginTensorDesc* all, int inputs) {
    return build(plugin).supportsFormatCombination(place, all, inputs, 1);
}
HARNESS int plugin_configure(IPluginV3* plugin, const DynamicPluginTensorDesc* all, int inputs) {
    return build(plugin).configurePlugin(all, inputs, all + inputs, 1);
}
HARNESS long long plugin_workspace(IPluginV3* plugin, const DynamicPluginTensorDesc* all, int inputs) {
    return static_cast<long long>(build(plugin).getWorkspaceSize(all, inputs, all + inputs, 1));
}

HARNESS int plugin_change(IPluginV3* plugin, const PluginTensorDesc* all, int inputs) {
    return runtime(plugin).onShapeChange(all, inputs, all + inputs, 1);
}
HARNESS int plugin_enqueue(IPluginV3* plugin, const PluginTensorDesc* all, int inputs, void* const* tensors,
                           void* workspace, void* stream) {
    return runtime(plugin).enqueue(all, all + inputs, tensors, tensors + inputs, workspace,
                                   static_cast<cudaStream_t>(stream));
}
