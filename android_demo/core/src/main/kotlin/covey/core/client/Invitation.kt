package covey.core.client

import covey.core.Reason
import covey.core.UsageException
import covey.core.because

/**
 * What a person types, taps or scans to join: a server, and a one-time code where the server asks for one. Taken are the
 * server's address alone, `ADDRESS CODE`, and the link `covey://join?server=ADDRESS&code=CODE` that a QR code holds.
 */
data class Invitation(val server: String, val code: String) {
    companion object {
        private val CODE = Regex("[A-Za-z0-9_-]{1,64}")

        /** Reads an invitation; throws [UsageException] with what is wrong. */
        fun parse(text: String): Invitation {
            val trimmed = text.trim()
            val (server, code) = when {
                trimmed.startsWith("covey:") -> fromLink(trimmed)
                '#' in trimmed -> trimmed.substringBefore('#') to trimmed.substringAfter('#')
                else -> fromWords(trimmed)
            }
            if (code.isNotEmpty() && !CODE.matches(code)) throw UsageException("'${code.take(40)}' is no invitation code").because(Reason.CODE, code.take(40))
            return Invitation(serverUrl(server), code)
        }

        private fun fromWords(text: String): Pair<String, String> {
            val words = text.split(Regex("\\s+"))
            if (words.size > 2) throw UsageException("an invitation is a server's address and a code").because(Reason.INVITATION)
            return words[0] to words.getOrElse(1) { "" }
        }

        private fun fromLink(link: String): Pair<String, String> {
            val query = link.substringAfter('?', "").split('&').associate {
                it.substringBefore('=') to java.net.URLDecoder.decode(it.substringAfter('=', ""), "UTF-8")
            }
            return (query["server"] ?: throw UsageException("the link names no server").because(Reason.INVITATION)) to query["code"].orEmpty()
        }
    }
}
