// What TensorRT finds in the library: a creator for each op, and the way to its logger.

#include "check.hpp"
#include "log.hpp"
#include "machine.hpp"
#include "plugin.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>
#include <optional>
#include <utility>

#ifdef _WIN32
#define BNFOLD_EXPORT extern "C" __declspec(dllexport)
#else
#define BNFOLD_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bnfold::plugin {
namespace {

using nvinfer1::ILogger;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

// TensorRT's way to its logger, which it tells once, when it loads the library; nothing else outlives a call.
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(const Op& op) : op_(op) {}

    nvinfer1::IPluginV3* createPlugin(const AsciiChar* name, const PluginFieldCollection* fields,
                                      TensorRTPhase phase) noexcept override {
        try {
            const std::string node = name ? name : "";
            std::string wrong = phase == TensorRTPhase::kBUILD ? machine::unusable() : "";
            float epsilon = 0;
            if (wrong.empty()) wrong = read(fields, epsilon);
            if (wrong.empty()) return new Plugin(op_, epsilon, node);
            refuse(op_, node, wrong);
        } catch (const std::exception& error) {
            refuse(op_, "", error.what());
        }
        return nullptr;
    }

    const PluginFieldCollection* getFieldNames() noexcept override {
        static const PluginField epsilon("epsilon", nullptr, PluginFieldType::kFLOAT32, 1);
        static const PluginFieldCollection one{1, &epsilon}, none{0, nullptr};
        return op_.statistics ? &one : &none;
    }
    const AsciiChar* getPluginName() const noexcept override { return op_.name; }
    const AsciiChar* getPluginVersion() const noexcept override { return kVersion; }
    const AsciiChar* getPluginNamespace() const noexcept override { return kDomain; }

private:
    std::string read(const PluginFieldCollection* fields, float& epsilon) const {
        std::optional<float> found;
        for (int i = 0; fields && i < fields->nbFields; ++i) {
            const PluginField& field = fields->fields[i];
            if (std::strncmp(field.name, "plugin_", 7) == 0) continue;  // for the parser
            if (!op_.statistics || std::strcmp(field.name, "epsilon") != 0) {
                return std::string("there is no field ") + field.name + "; Note: valid choices are " +
                       (op_.statistics ? "epsilon" : "none");
            }
            if (field.type != PluginFieldType::kFLOAT32 || field.length != 1 || !field.data) {
                return "epsilon needs to be one float32";
            }
            float value;
            std::memcpy(&value, field.data, sizeof value);
            found = value;
        }
        if (!op_.statistics) return {};
        if (!found) return "epsilon is missing; the attribute epsilon, one float32, is needed";
        epsilon = *found;
        return wrong_epsilon(epsilon);
    }

    const Op& op_;
};

// One for each line of the table.
template <class>
struct Creators;
template <std::size_t... I>
struct Creators<std::index_sequence<I...>> {
    Creator all[sizeof...(I)] = {Creator(kOps[I])...};
    nvinfer1::IPluginCreatorInterface* const list[sizeof...(I)] = {&all[I]...};
};

}  // namespace

void refuse(const Op& op, const std::string& node, const std::string& wrong) noexcept {
    try {
        nvinfer1::ILoggerFinder* const finder = logger_finder;
        ILogger* const logger = finder ? finder->findLogger() : nullptr;
        const std::string line = std::string(op.name) + (node.empty() ? "" : " '" + node + "'") + ": " + wrong;
        if (logger) {
            logger->log(ILogger::Severity::kERROR, line.c_str());
        } else {
            std::fprintf(stderr, "%s\n", line.c_str());
        }
    } catch (...) {  // no memory for a message
    }
}

}  // namespace bnfold::plugin

BNFOLD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { bnfold::plugin::logger_finder = finder; }

BNFOLD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using namespace bnfold::plugin;
    static Creators<std::make_index_sequence<std::size(kOps)>> creators;
    count = static_cast<int32_t>(std::size(kOps));
    return creators.list;
}
