"""Every error that Covey raises on purpose.

    CoveyError
    ├── UsageError            the person at the keyboard asked for something impossible: fix the command or the file
    │   ├── TaskFileError     ... the task file
    │   └── BundleError       ... a bundle that is damaged, too new, or for something else
    ├── LayoutError           two sides disagree on what is trained
    ├── CodecError            our own misuse of a codec: a value that it cannot encode, an unknown stage
    └── RemoteError           the other side sent something wrong; carries the HTTP status that a server answers with
        ├── PayloadError      ... bytes of the packed format, or of a codec stage
        ├── SignatureError    ... a key or a signature
        └── MessageError      ... a msgpack message

The message of each is one sentence that names the cause and, where there is one, the next step: `covey` prints it as
it is, and a server sends it as it is. So no message may hold a secret or a whole payload.
"""


class CoveyError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(CoveyError):
    """The command or a file that it names cannot be used as it is."""


class TaskFileError(UsageError):
    """The task file is wrong."""


class BundleError(UsageError):
    """The bundle is damaged, of a newer format, or not for this use."""


class LayoutError(CoveyError):
    """Two sides disagree on the layout, or a layout contradicts itself."""


class CodecError(CoveyError):
    """A codec was asked for something that it cannot do."""


class RemoteError(CoveyError):
    """The other side broke the protocol. `status` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class PayloadError(RemoteError):
    """Bytes that are not a valid payload."""


class MessageError(RemoteError):
    """Bytes that are not a valid message."""


class SignatureError(RemoteError):
    """A key or a signature that does not hold."""

    def __init__(self, message: str, status: int = 401):
        super().__init__(message, status)
