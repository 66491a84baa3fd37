"""The ABI: pure values and errors. No I/O, no torch, no kernel."""
