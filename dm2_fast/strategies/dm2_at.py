"""DM2-AT: chooses like DM2; the training that follows adds an adversarial twin to each chosen sample (Algorithm 2)."""

from dm2_fast.strategies.dm2 import choose as choose
