"""Networks, data sets, training loops and runs that show the phases: the embedded demo and the proof runs."""
