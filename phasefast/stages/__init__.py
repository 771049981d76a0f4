"""The stages of a measurement; none imports another, the composer in ``phasefast.engine`` knows them all."""
