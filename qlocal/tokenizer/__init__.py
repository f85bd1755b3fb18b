"""Text to token ids and back, without letting what is typed become a control token."""

from qlocal.tokenizer.decoder import StreamDecoder
from qlocal.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
