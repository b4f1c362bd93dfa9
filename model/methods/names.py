"""The methods' names in configurations. Imports nothing heavy; the objects are in `model.methods.registry`."""

from typing import Literal

MethodName = Literal["realcustom++", "realcustom"]
