"""The words that everything else is said in: errors, states, clocks, durations."""
