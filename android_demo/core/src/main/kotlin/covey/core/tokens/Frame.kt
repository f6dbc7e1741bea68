package covey.core.tokens

/** The marks around one text, `[CLS]` and `[SEP]` say. */
internal class Frame(val before: IntArray, val after: IntArray) {
    /** How many marks there are. */
    val size: Int get() = before.size + after.size

    /** The ids between their marks. */
    fun around(ids: IntArray): IntArray = before + ids + after

    companion object {
        val NONE = Frame(IntArray(0), IntArray(0))

        /** What a file's post-processor puts around one text; refuses one that is not known here. */
        fun of(part: Component): Frame = when (part.type) {
            "Sequence" -> part.components("processors").map(::of)
                .fold(NONE) { inner, outer -> Frame(outer.before + inner.before, inner.after + outer.after) }
            "TemplateProcessing" -> template(part)
            "BertProcessing", "RobertaProcessing" -> Frame(intArrayOf(mark(part, "cls")), intArrayOf(mark(part, "sep")))
            "ByteLevel" -> NONE // it moves offsets alone
            else -> part.unsupported()
        }

        private fun mark(part: Component, name: String): Int = Component.whole(part.list(name).getOrNull(1)) ?: part.damaged(name)

        private fun template(part: Component): Frame {
            val pieces = part.components("single")
            val middle = pieces.indexOfFirst { it.has("Sequence") }
            if (middle < 0 || pieces.count { it.has("Sequence") } > 1) part.unsupported("TemplateProcessing without the text, or with it twice")
            val special = Component(part.role, part.map("special_tokens"))
            val ids = { some: List<Component> -> some.flatMap { ids(Component(part.role, it.map("SpecialToken")), special) }.toIntArray() }
            return Frame(ids(pieces.take(middle)), ids(pieces.drop(middle + 1)))
        }

        private fun ids(token: Component, special: Component): List<Int> =
            Component(token.role, special.map(token.text("id"))).list("ids").map { Component.whole(it) ?: token.damaged("ids") }
    }
}
