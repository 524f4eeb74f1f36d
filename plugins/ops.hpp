// The eight ops of domain "bnfold", version 1: a table, which creators, checks and launches go by.

#pragma once

namespace bnfold::plugin {

constexpr const char* kDomain = "bnfold";
constexpr const char* kVersion = "1";

// y = act(z * scale + shift [+ residual]), where z is x, or x normalized by the statistics of this very batch.
struct Op {
    const char* name;
    bool statistics, residual, relu;

    int inputs() const { return residual ? 4 : 3; }
};

constexpr const char* kInputs[] = {"x", "scale", "shift", "residual"};

constexpr Op kOps[] = {
    {"BnfoldBatchNorm", false, false, false},
    {"BnfoldBatchNormRelu", false, false, true},
    {"BnfoldBatchNormAdd", false, true, false},
    {"BnfoldBatchNormAddRelu", false, true, true},
    {"BnfoldBatchStatNorm", true, false, false},
    {"BnfoldBatchStatNormRelu", true, false, true},
    {"BnfoldBatchStatNormAdd", true, true, false},
    {"BnfoldBatchStatNormAddRelu", true, true, true},
};

}  // namespace bnfold::plugin
