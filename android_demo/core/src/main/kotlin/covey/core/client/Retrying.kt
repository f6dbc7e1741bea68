package covey.core.client

import covey.core.MessageException
import covey.core.Reason
import covey.core.RefusedException
import covey.core.ServerException
import covey.core.UnreachableException
import covey.core.because
import covey.core.wire.Refusal
import java.io.IOException
import java.text.ParseException
import java.text.SimpleDateFormat
import java.util.Locale
import java.util.TimeZone
import javax.net.ssl.SSLException
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow

/**
 * Waits between tries: uniform in 0..min([longestS], [firstS] x 2^try) on top of what the server asks for (exponential
 * backoff with full jitter); [patienceS] in all, null = for ever.
 */
data class Backoff(val firstS: Double = 0.5, val longestS: Double = 30.0, val patienceS: Double? = null) {
    /** Seconds before try [attempt] + 1; [draw] is uniform in [0, 1). */
    fun delay(attempt: Int, draw: Double, retryAfterS: Double = 0.0): Double =
        min(max(0.0, retryAfterS), MAX_RETRY_AFTER_S) + draw * min(longestS, firstS * 2.0.pow(min(attempt, 30)))

    companion object {
        private const val MAX_RETRY_AFTER_S = 3600.0 // a server that says "in a year" is not believed
    }
}

/** Bytes of bodies in exchanges that were answered, by kind. */
class Traffic(val sent: MutableMap<String, Long> = HashMap(), val received: MutableMap<String, Long> = HashMap()) {
    /** Count one exchange. */
    fun add(kind: String, up: Long, down: Long) {
        sent[kind] = (sent[kind] ?: 0) + up
        received[kind] = (received[kind] ?: 0) + down
    }
}

/** The time as the client uses it, so that a test or a job that is being stopped can end a wait. */
interface Clock {
    /** Seconds since some fixed moment. */
    fun seconds(): Double

    /** Wait; throws [covey.core.StoppedException] when asked to stop. */
    fun sleep(seconds: Double)

    /** Uniform in [0, 1). */
    fun draw(): Double = Math.random()
}

/**
 * Exchanges with retries: connection errors, 408, 425, 429 and 5xx are tried again, any other refusal is final. All
 * requests of the client go through here.
 */
class Retrying(
    private val http: Http, private val url: String, private val clock: Clock, val traffic: Traffic,
    private val notice: (String) -> Unit,
) {
    /** How long to be patient; changed once the client is under way. */
    var backoff = Backoff()

    /** The body of the 200 that answers. */
    fun exchange(request: Request): ByteArray = retried { once(request).body }

    /** One try; throws [Busy] or [IOException] where another may help. */
    internal fun once(request: Request, good: Set<Int> = setOf(200)): Answer {
        val answer = http.exchange(request)
        traffic.add(request.kind, request.body?.size?.toLong() ?: 0, answer.body.size.toLong())
        if (answer.status !in good) throw refused(answer)
        return answer
    }

    /** The result of the first try that succeeds; one that [progressed] before it failed counts as the first. */
    fun <T> retried(progressed: () -> Boolean = { false }, attempt: () -> T): T {
        val started = clock.seconds()
        var tries = 0
        var stale = 0
        while (true) {
            val failure = try {
                return attempt()
            } catch (error: Stale) { // the answer brought another nonce: sign again, at once
                if (++stale % STALE_TRIES != 0) continue
                Busy(error.message.orEmpty(), 0.0)
            } catch (error: SSLException) { // a certificate that is wrong now is wrong in a minute
                throw ServerException("the TLS connection to $url is not trusted: ${error.message}").because(Reason.NOT_TRUSTED, url)
            } catch (error: IOException) {
                Busy(error.message ?: error.javaClass.simpleName, 0.0)
            } catch (error: Busy) {
                error
            }
            if (progressed()) tries = 0
            val delay = backoff.delay(tries, clock.draw(), failure.retryAfterS)
            val patience = backoff.patienceS
            if (patience != null && clock.seconds() - started + delay > patience) {
                throw UnreachableException("no Covey server answers at $url (${failure.message}): is the network there, and `covey serve` running?")
                    .because(Reason.UNREACHABLE, url)
            }
            if (tries++ == 0) notice("$url does not answer (${failure.message}); trying again")
            clock.sleep(delay)
        }
    }

    /** What an answer other than 200 means: [Busy] for what may be tried again, [RefusedException] for what is final. */
    fun refused(answer: Answer): Exception {
        val refusal = try {
            Refusal.fromBytes(answer.body)
        } catch (_: MessageException) {
            Refusal("", "", 0.0)
        }
        val sentence = refusal.message.take(500).filterNot { it.isISOControl() }
        if (answer.status in RETRIED || answer.status >= 500) {
            val after = max(parseRetryAfter(answer.header("retry-after"), System.currentTimeMillis()), refusal.retryAfterS)
            return Busy(sentence.ifEmpty { "HTTP ${answer.status}" }, after)
        }
        if (refusal.code == "stale_nonce") return Stale(sentence)
        if (sentence.isNotEmpty()) return RefusedException(sentence, answer.status, refusal.code.take(64))
        return RefusedException("$url is not a Covey server: it answers ${answer.status}", answer.status, "").because(Reason.NOT_A_SERVER, url)
    }

    companion object {
        private val RETRIED = setOf(408, 425, 429)
        private const val STALE_TRIES = 5 // how often in a row a request is signed again at once
    }
}

/** The server answered that it cannot now. */
internal class Busy(message: String, val retryAfterS: Double) : Exception(message)

/** The server did not take the nonce; its answer brought another. */
internal class Stale(message: String) : Exception(message)

/** Seconds from a Retry-After header: a number, or an HTTP date; 0 for anything else. */
internal fun parseRetryAfter(text: String, nowMs: Long): Double {
    val trimmed = text.trim()
    if (trimmed.isNotEmpty() && trimmed.all { it in '0'..'9' }) return trimmed.take(9).toDouble()
    val format = SimpleDateFormat("EEE, dd MMM yyyy HH:mm:ss zzz", Locale.ROOT)
    format.timeZone = TimeZone.getTimeZone("GMT")
    return try {
        max(0.0, ((format.parse(trimmed)?.time ?: nowMs) - nowMs) / 1000.0)
    } catch (_: ParseException) {
        0.0
    }
}
