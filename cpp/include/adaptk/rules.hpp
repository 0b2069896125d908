// The list of rules. A new rule is a header in rules/, one include and one entry here, and an oracle in
// tests/oracles.py; everything else follows from this list.
#pragma once

#include "adaptk/rule.hpp"
#include "adaptk/rules/adabelief.hpp"
#include "adaptk/rules/adadelta.hpp"
#include "adaptk/rules/adagrad.hpp"
#include "adaptk/rules/adam.hpp"
#include "adaptk/rules/adamax.hpp"
#include "adaptk/rules/adan.hpp"
#include "adaptk/rules/asgd.hpp"
#include "adaptk/rules/delta_bar_delta.hpp"
#include "adaptk/rules/lion.hpp"
#include "adaptk/rules/nadam.hpp"
#include "adaptk/rules/radam.hpp"
#include "adaptk/rules/rmsprop.hpp"
#include "adaptk/rules/rprop.hpp"
#include "adaptk/rules/sgd.hpp"
#include "adaptk/rules/yogi.hpp"

ADAPTK_NAMESPACE_BEGIN

#if defined(ADAPTK_CHOSEN_RULES)
#include "adaptk_chosen_rules.hpp"  // some of these: made by rules.cmake
#else
using Rules = RuleList<Sgd, Momentum, Nesterov, DeltaBarDelta, AdaGrad, RmsProp, RmsPropCentered, RmsPropMomentum,
                       RmsPropCenteredMomentum, RmsPropNesterov, AdaDelta, Adam, AmsGrad, AdamW, AdaMax, NAdam, RAdam,
                       RProp, Asgd, Lion, AdaBelief, Yogi, Adan>;
#endif

ADAPTK_NAMESPACE_END
