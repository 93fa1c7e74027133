// Where each number of the run lives: the same columns as sfplus_kernels/contract/layout.py, where they
// are explained. The lists are macros so that bindings.cpp can export them and a test compare them.
#pragma once

#define SFPLUS_RULE(X) X(POLYAK) X(GIVEN_LR) X(PAPER) X(RECTIFIED) X(MOMENTUM)
#define SFPLUS_FORMAT(X) X(FULL) X(HALF) X(QUARTER)
#define SFPLUS_MOVE(X) X(TO_X) X(TO_Y) X(SHIFT) X(EXPOSE_Z) X(ABSORB_Z)
#define SFPLUS_HYPER(X)                                                                    \
  X(LR) X(SF_BETA1) X(BETA1) X(BETA2) X(EPS) X(WEIGHT_DECAY) X(R) X(C_WARMUP)              \
  X(WARMUP_STEPS) X(WEIGHT_LR_POWER) X(SILENT_SGD_PHASE) X(ASCENDS) X(MAX_LR)  \
  X(DECAY_PEAK) X(NESTEROV) X(ROW_NORM) X(C_FACTOR) X(DAMPENING)
#define SFPLUS_SETTING(X)                                                                  \
  X(RULE) X(SF_BETA1_MAX) X(SF_BETA1_ANNEAL_STEPS) X(POLYAK_BETA) X(F_STAR) X(GRAD_SIGN)   \
  X(MAX_GRAD_NORM) X(ROUNDING_SEED)
#define SFPLUS_GLOBAL(X)                                                                   \
  X(FUNCTION_VALUE) X(GRAD_L1) X(GRAD_NORM) X(IP_TERM) X(GRAD_L1_EMA) X(POLYAK_LR)         \
  X(SF_BETA1) X(SKIP) X(SKIPPED_STEPS) X(CONSECUTIVE_SKIPPED_STEPS)                        \
  X(GRAD_SCALE) X(CLIP_COEF) X(FOUND_INF)
#define SFPLUS_GROUP(X)                                                                    \
  X(K) X(LR_MAX) X(WEIGHT_SUM) X(CKP1) X(SCHEDULED_LR) X(Y_BETA) X(ADAPTIVE)
#define SFPLUS_SCALAR(X) X(STEP) X(Y_BETA)
#define SFPLUS_GROUP_COEF(X)                                                               \
  X(BETA1) X(GRAD_TO_M) X(BETA2) X(GRAD_TO_V) X(EPS) X(OMEGA) X(E_KEPT) X(DELTA_TO_Y)  \
  X(M_TO_U) X(GRAD_TO_U)
#define SFPLUS_TENSOR_COEF(X) X(STEP_SIZE) X(INV_SQRT_BC2) X(E_TO_Y) X(GRAD_SHARE)
#define SFPLUS_SUM(X) X(GRAD_L1) X(GRAD_DOT_E) X(GRAD_SQ)
#define SFPLUS_DRIFT(X) X(WEIGHT_SQ) X(GRAD_SQ) X(UPDATE_SQ) X(WEIGHT_DOT_UPDATE)
#define SFPLUS_ROW(X)                                                                      \
  X(Y) X(PARAM) X(EXP_AVG) X(EXP_AVG_SQ) X(DISPLACEMENT) X(NUMEL) X(GROUP) X(SLOT)         \
  X(Y_HIGH) X(INDEX_START) X(INDEX_RUN) X(INDEX_STRIDE) X(EXPONENTS) X(ROW_LENGTH)
#define SFPLUS_CHUNK(X) X(ROW) X(START)
#define SFPLUS_DTYPE(X) X(FLOAT64) X(FLOAT32) X(BFLOAT16) X(FLOAT16)

#define SFPLUS_ENUMS(X)                                                                    \
  X(Rule, SFPLUS_RULE) X(Format, SFPLUS_FORMAT) X(Move, SFPLUS_MOVE)                       \
  X(Hyper, SFPLUS_HYPER) X(Setting, SFPLUS_SETTING) X(Global, SFPLUS_GLOBAL)               \
  X(Group, SFPLUS_GROUP) X(Scalar, SFPLUS_SCALAR) X(GroupCoef, SFPLUS_GROUP_COEF)          \
  X(TensorCoef, SFPLUS_TENSOR_COEF) X(Sum, SFPLUS_SUM) X(Drift, SFPLUS_DRIFT)              \
  X(Row, SFPLUS_ROW)                                                                       \
  X(Chunk, SFPLUS_CHUNK) X(DType, SFPLUS_DTYPE)

namespace sfplus {

// For each list a struct with its columns and WIDTH, their number: Hyper::LR, Hyper::WIDTH, ...
#define SFPLUS_COLUMN(name) name,
#define SFPLUS_ENUM(name, columns) \
  struct name {                    \
    enum : int { columns(SFPLUS_COLUMN) WIDTH }; \
  };
SFPLUS_ENUMS(SFPLUS_ENUM)
#undef SFPLUS_ENUM
#undef SFPLUS_COLUMN

}  // namespace sfplus
