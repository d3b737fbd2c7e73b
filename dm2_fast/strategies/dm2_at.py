"""DM2-AT: chooses like DM2; the training that follows adds an adversarial twin to each chosen sample (Algorithm 2)."""

from dataclasses import replace

from dm2_fast.strategies import dm2

STRATEGY = replace(dm2.STRATEGY, name="dm2-at", adversarial="round")
