"""Which release of transformers is installed, for tests of what earlier ones lack."""

import transformers
from packaging.version import Version


def is_before(release: str) -> bool:
    """Return whether the installed transformers is older than a release."""
    return Version(transformers.__version__) < Version(release)
