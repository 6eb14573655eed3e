"""What can go wrong for a user, each with one clear line."""


class GPTError(ValueError):
    """Base of the errors below: something the user gave cannot work."""


class ConfigError(GPTError):
    """Options that contradict each other, or a value that has no meaning."""


class DataError(GPTError):
    """A text that is missing, unreadable or too short, or a download that failed."""


class TokenError(GPTError):
    """A character or a token id outside the vocabulary."""


class CheckpointError(GPTError):
    """A checkpoint that is missing, damaged, or of another model."""
