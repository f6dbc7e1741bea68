package covey.core.wire

/** GET /v1/hello, the one answer for anybody: a nonce to sign with, and whether a [code][enroll] is needed. */
data class Hello(val protocol: Int, val enroll: String, val nonce: String) : Message {
    init {
        requireMessage(enroll == "code" || enroll == "open") { "enroll must be 'code' or 'open', got '${enroll.take(40)}'" }
        requireMessage(nonce.length in 1..64) { "nonce must have 1 to 64 characters" }
    }

    override val form get() = Hello
    override fun fields() = listOf(protocol, enroll, nonce)

    companion object : Form<Hello>("Hello", "protocol" to Kind.Whole, "enroll" to Kind.Text, "nonce" to Kind.Text) {
        override fun make(v: Values) = Hello(v.int("protocol"), v["enroll"], v["nonce"])
    }
}

/** POST /v1/enroll: the name that a device would like to have, and a one-time code, or none for a key that is known. */
data class Enroll(val client: String, val code: String) : Message {
    init {
        checkName("client", client)
        requireMessage(code.length <= 64) { "a code has at most 64 characters" }
    }

    override val form get() = Enroll
    override fun fields() = listOf(client, code)

    companion object : Form<Enroll>("Enroll", "client" to Kind.Text, "code" to Kind.Text) {
        override fun make(v: Values) = Enroll(v["client"], v["code"])
    }
}

/** The answer: the name that belongs to this key from now on. */
data class Enrolled(val client: String) : Message {
    init { checkName("client", client) }

    override val form get() = Enrolled
    override fun fields() = listOf(client)

    companion object : Form<Enrolled>("Enrolled", "client" to Kind.Text) {
        override fun make(v: Values) = Enrolled(v["client"])
    }
}
