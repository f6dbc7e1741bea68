"""From a base model to an on-device training bundle that proves itself."""
