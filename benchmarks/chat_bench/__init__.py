"""What `benchmarks/chat_latency.py` measures with: a pty, a server that streams, a stock chat to compare with."""
