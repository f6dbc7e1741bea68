package covey.core.client

private const val STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
private const val FOR_ADDRESSES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

/** Base64 of RFC 4648, padded; written out, since check.sh compiles against older classes. */
internal fun base64(bytes: ByteArray): String = coded(bytes, STANDARD).let { it + "=".repeat((4 - it.length % 4) % 4) }

/** The form for addresses, without padding. */
internal fun base64Url(bytes: ByteArray): String = coded(bytes, FOR_ADDRESSES)

/** The inverse of [base64]; null for any other spelling. */
internal fun fromBase64(text: String): ByteArray? = decoded(text.trimEnd('='), STANDARD)?.takeIf { base64(it) == text }

/** The inverse of [base64Url]; null for any other spelling. */
internal fun fromBase64Url(text: String): ByteArray? = decoded(text, FOR_ADDRESSES)?.takeIf { base64Url(it) == text }

private fun coded(bytes: ByteArray, letters: String): String {
    val out = StringBuilder()
    for (at in bytes.indices step 3) {
        val count = minOf(3, bytes.size - at)
        var group = 0
        for (i in 0..2) group = (group shl 8) or if (i < count) bytes[at + i].toInt() and 0xff else 0
        for (i in 0..count) out.append(letters[(group shr (18 - 6 * i)) and 63])
    }
    return out.toString()
}

private fun decoded(text: String, letters: String): ByteArray? {
    val out = ByteArray(text.length * 6 / 8)
    var held = 0
    var bits = 0
    var at = 0
    for (c in text) {
        val digit = letters.indexOf(c)
        if (digit < 0) return null
        held = (held shl 6) or digit
        bits += 6
        if (bits >= 8) {
            bits -= 8
            out[at++] = (held shr bits).toByte()
            held = held and ((1 shl bits) - 1)
        }
    }
    return out
}
