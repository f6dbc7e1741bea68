package covey.core

/**
 * Every error raised on purpose. The message is one sentence that names the cause and, where there is one, the next
 * step: an app may show it as it is.
 */
sealed class CoveyException(message: String) : Exception(message) {
    /** The sentence. */
    val sentence: String get() = message.orEmpty()
}

/** What a person asked for cannot be done as it is. */
class UsageException(message: String) : CoveyException(message)

/** A bundle that is damaged, too new, too large, or for something else. */
class BundleException(message: String) : CoveyException(message)

/** Another process, or another slice that is about to end, holds the state folder. */
class TakenException(message: String) : CoveyException(message)

/** Two sides disagree on what is trained. */
class LayoutException(message: String) : CoveyException(message)

/** Our own misuse of a codec: a value that it cannot encode, an unknown stage. */
class CodecException(message: String) : CoveyException(message)

/** Bytes that are not a valid payload. [status] is the HTTP status that a server would answer with. */
class PayloadException(message: String, val status: Int = 400) : CoveyException(message)

/** Bytes that are not a valid message. */
class MessageException(message: String) : CoveyException(message)

/** Training cannot go on; nothing of the round may be uploaded. */
class TrainingException(message: String) : CoveyException(message)

/** The server cannot be used as it answers. */
class ServerException(message: String) : CoveyException(message)

/** The server did not answer in the time given; what is on disk stays, and a later run goes on. */
class UnreachableException(message: String) : CoveyException(message)

/** The server answered no. [status] is HTTP's, [code] the refusal's stable word. */
class RefusedException(message: String, val status: Int, val code: String) : CoveyException(message)

/** The client stops here, and everything is saved; take it up again in [laterS] seconds if it is to go on. */
class StoppedException(val laterS: Double) : CoveyException("the client was asked to stop")
