package covey.core.model

import covey.core.LayoutException
import covey.core.wire.Sharing

/** What a tensor of the adapter is: see [Division]. */
enum class Label { SHARED, PERSONAL, FIXED, FRESH, COHORT }

/**
 * Which entries of an adapter travel, as a task's [Sharing] says. Shared tensors travel both ways; personal ones are
 * trained here and never leave; fixed ones keep their seeded start; fresh ones start anew each round and travel up only; of
 * cohort ones there is a copy for each group of devices, and a device downloads and sends that of its own.
 *
 * All vectors are parts of one space: the adapter at the task's largest rank, the cohorts' copies (`cohort0.` before the
 * names), and the second adapter (`second.`). Factors beyond that rank are zeros and never travel. The same as Python's `covey_shared.sharing`, name by name.
 */
class Division(val adapter: Layout, private val second: Layout?, val sharing: Sharing) {
    init {
        for (tensor in adapter.tensors) {
            val labels = patterns.filter { (_, list) -> list.any { matches(tensor, it) } }
            if (labels.size > 1) throw LayoutException("the tensor '${tensor.name}' is ${labels.joinToString(" and ") { it.first.name.lowercase() }}; it can be one of these")
        }
        if (adapter.tensors.all { label(it) == Label.PERSONAL || label(it) == Label.FIXED }) {
            throw LayoutException("every tensor would be personal or fixed, so nothing would be learned together")
        }
        if (sharing.fusion.isNotEmpty() && sharing.personal.isNotEmpty()) {
            throw LayoutException("devices that fuse two adapters keep a whole one to themselves, so no tensors besides")
        }
        if ((sharing.second || sharing.fusion == "concatenated") && second == null) throw LayoutException("the bundle takes no second adapter: export it with --frozen-rank")
    }

    private val patterns
        get() = listOf(
            Label.PERSONAL to sharing.personal, Label.FIXED to sharing.fixed, Label.FRESH to sharing.fresh, Label.COHORT to sharing.cohort,
        )

    /** What a tensor is. */
    fun label(tensor: Tensor): Label =
        patterns.firstOrNull { (_, list) -> list.any { matches(tensor, it) } }?.first ?: Label.SHARED

    /** The adapter at the task's largest rank: what the task has of it, and what this device holds. */
    val held: Layout by lazy { sharing.ranks.maxOrNull()?.let { adapter.atRank(it.toInt()) } ?: adapter }

    /** Everything: the adapter, then the cohorts' copies, then the second adapter. */
    val space: Layout by lazy {
        val copied = held.tensors.filter { label(it) == Label.COHORT }
        val copies = (0 until sharing.cohorts).flatMap { c -> copied.map { it.copy(name = "cohort$c.${it.name}") } }
        val beside = if (sharing.second) second!!.tensors.map { it.copy(name = "second.${it.name}") } else emptyList()
        Layout(held.tensors + copies + beside)
    }

    /** What the server publishes: shared tensors, the cohorts' copies and the second adapter. */
    val published: Layout by lazy {
        val own = held.tensors.size
        Layout(space.tensors.take(own).filter { label(it) == Label.SHARED } + space.tensors.drop(own))
    }

    /** Of what is published, what all devices download: all without cohorts, null where they have all. */
    val common: Layout? by lazy {
        val copies = (0 until sharing.cohorts).flatMap { copies(it).tensors }.map { it.name }.toSet()
        published.tensors.filter { it.name !in copies }.ifEmpty { null }?.let(::Layout)
    }

    /** The copies of one cohort. */
    fun copies(cohort: Int): Layout =
        Layout(held.tensors.filter { label(it) == Label.COHORT }.map { it.copy(name = "cohort$cohort.${it.name}") })

    /** What a device of this cohort downloads, one after the other: layouts, with the cohort where it is copies. */
    fun downloads(cohort: Int): List<Pair<Layout, Int?>> {
        val shared = listOfNotNull(common).map { it to null }
        return if (sharing.cohorts > 0) shared + (copies(cohort) to cohort) else shared
    }

    /** What a device of this cohort holds of a version: what all have, then its cohort's copies. */
    fun downloaded(cohort: Int): Layout = Layout(downloads(cohort).flatMap { it.first.tensors })

    /** What a device trains in a round: the phase's tensors and its personal ones. */
    fun trained(round: Int): Layout = Layout(held.tensors.filter { moves(it, round) })

    /** What it sends of a round's change. */
    fun uploaded(round: Int): Layout = Layout(trained(round).tensors.filter { label(it) != Label.PERSONAL })

    /** What it keeps to itself; null where that is nothing. */
    val personal: Layout? by lazy { held.tensors.filter { label(it) == Label.PERSONAL }.ifEmpty { null }?.let(::Layout) }

    private fun moves(tensor: Tensor, round: Int): Boolean {
        if (label(tensor) == Label.PERSONAL) return true
        val phases = sharing.phases
        val here = phases.isEmpty() || phases[(round - 1).mod(phases.size)].any { matches(tensor, it) }
        return here && label(tensor) != Label.FIXED
    }

    /** Version 0 of what is published, from the adapter's start. */
    fun start(adapterStart: FloatArray): FloatArray = everything(adapterStart).at(space.positions(published))

    /**
     * The whole adapter of this device and the second one, if the task has one: a [version] that it downloaded laid over
     * the start, [own] personal tensors, and [fresh], the start of those that begin anew in the round.
     */
    fun whole(adapterStart: FloatArray, version: FloatArray, own: FloatArray, cohort: Int, fresh: FloatArray?): Pair<FloatArray, FloatArray?> {
        val all = everything(adapterStart)
        all.put(space.positions(downloaded(cohort)), version)
        val anew = fresh?.let(::cut)
        held.tensors.forEachIndexed { i, tensor ->
            val (from, to) = held.offsets[i] to held.offsets[i] + tensor.size
            if (label(tensor) == Label.FRESH && anew != null) anew.copyInto(all, from, from, to)
            if (label(tensor) == Label.COHORT) all.at(copyOf(tensor, cohort)).copyInto(all, from)
        }
        val part = all.copyOf(held.size)
        if (own.isNotEmpty()) personal?.let { part.put(held.positions(it), own) }
        val rest = if (sharing.second) all.copyOfRange(all.size - second!!.size, all.size) else null
        if (held === adapter) return part to rest
        return FloatArray(adapter.size).also { it.put(adapter.positions(held), part) } to rest
    }

    /** Of a vector of the bundle's adapter what the task has of it. */
    private fun cut(whole: FloatArray): FloatArray = if (held === adapter) whole else whole.at(adapter.positions(held))

    private fun copyOf(tensor: Tensor, cohort: Int): IntArray =
        space.positions(Layout(listOf(tensor.copy(name = "cohort$cohort.${tensor.name}"))))

    private fun everything(adapterStart: FloatArray): FloatArray {
        val start = cut(adapterStart)
        val out = start.copyOf(space.size)
        for (cohort in 0 until sharing.cohorts) {
            held.tensors.forEachIndexed { i, tensor ->
                if (label(tensor) == Label.COHORT) {
                    out.put(copyOf(tensor, cohort), start.copyOfRange(held.offsets[i], held.offsets[i] + tensor.size))
                }
            }
        }
        return out
    }

    companion object {
        /** The seed of the tensors that start anew in a round: the same for all devices, so nobody need send it. */
        fun freshSeed(seed: Long, round: Int): Long = Prng.derive(seed, "fresh", round)

        /** Whether a pattern names a tensor: a shell pattern of its name, or `kind:` and its kind. */
        fun matches(tensor: Tensor, pattern: String): Boolean =
            if (pattern.startsWith("kind:")) tensor.kind == pattern.drop(5) else glob(pattern, tensor.name)
    }
}

/** The entries at [where]. */
fun FloatArray.at(where: IntArray) = FloatArray(where.size) { this[where[it]] }

/** Writes [values] to the entries at [where]. */
fun FloatArray.put(where: IntArray, values: FloatArray) {
    for (i in where.indices) this[where[i]] = values[i]
}

/** Shell patterns, `*`, `?` and `[...]`, in time of at most pattern times text, whatever the pattern. */
internal fun glob(pattern: String, text: String): Boolean {
    var p = 0
    var t = 0
    var star = -1
    var mark = 0
    while (t < text.length) {
        val next = if (p < pattern.length && pattern[p] != '*') one(pattern, p, text[t]) else -1
        when {
            next > 0 -> { p = next; t++ }
            p < pattern.length && pattern[p] == '*' -> { star = p++; mark = t }
            star >= 0 -> { p = star + 1; t = ++mark }
            else -> return false
        }
    }
    return pattern.drop(p).all { it == '*' }
}

/** Where the pattern goes on after it has taken one character at [p], or -1 if it does not take it. */
private fun one(pattern: String, p: Int, c: Char): Int {
    if (pattern[p] == '?') return p + 1
    val negated = pattern.getOrNull(p + 1) == '!'
    val first = if (negated) p + 2 else p + 1
    val end = if (pattern[p] == '[') pattern.indexOf(']', first + 1) else -1
    if (end < 0) return if (pattern[p] == c) p + 1 else -1
    var hit = false
    var i = first
    while (i < end) {
        if (i + 2 < end && pattern[i + 1] == '-') {
            hit = hit || c in pattern[i]..pattern[i + 2]
            i += 3
        } else {
            hit = hit || c == pattern[i++]
        }
    }
    return if (hit != negated) end + 1 else -1
}
