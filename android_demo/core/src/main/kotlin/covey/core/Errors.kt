package covey.core

/**
 * What a person can be told in their own language: an app has a sentence for each, with the error's arguments in it, in the
 * order that stands here.
 */
enum class Reason {
    /** Of the network: the server's address. */
    UNREACHABLE, NOT_TRUSTED, NOT_A_SERVER, OTHER_VERSION,

    /** Of an invitation: what was written. */
    ADDRESS, CODE, INVITATION,

    /** Of the server's own: the refusal's code and its sentence. */
    REFUSED,

    /** Of a bundle: the runtimes that it has; a file's name; the version that it needs; what its tokenizer has. */
    BUNDLE_TARGET, BUNDLE_DIGEST, BUNDLE_NEWER, BUNDLE_CHANGED, BUNDLE_SIGNATURE, TOKENIZER,

    /** Of a task: its kind. */
    TASK_KIND,

    /** Of a person's data: how many examples; where; where, the label and the classes. */
    DATA_SMALL, DATA_NONE, DATA_RECORD, DATA_LABEL,

    /** Of the phone: megabytes needed and free; a file's name. */
    SPACE, DISK, STATE_NEWER,

    /** Of training: the step. Of an update: its bytes and the limit. */
    LOSS, UPDATE_SIZE,

    /** Of the backup. */
    VAULT, PASSPHRASE,
}

/**
 * Every error raised on purpose. The message is one sentence that names the cause and, where there is one, the next
 * step: a log may have it as it is, and an app says it by its [reason].
 */
sealed class CoveyException(message: String) : Exception(message) {
    /** The sentence, in English. */
    val sentence: String get() = message.orEmpty()

    /** What it is, where there is a word for it. */
    var reason: Reason? = null
        internal set

    /** What belongs into the reason's sentence. */
    var arguments: List<String> = emptyList()
        internal set
}

/** This error with its reason. */
internal fun <E : CoveyException> E.because(reason: Reason, vararg arguments: Any): E {
    this.reason = reason
    this.arguments = arguments.map { "$it" }
    return this
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
class RefusedException(message: String, val status: Int, val code: String) : CoveyException(message) {
    init {
        because(Reason.REFUSED, code, message)
    }
}

/** The client stops here, and everything is saved; take it up again in [laterS] seconds if it is to go on. */
class StoppedException(val laterS: Double) : CoveyException("the client was asked to stop")
