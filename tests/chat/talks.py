"""What is said in the scenes: one small history a language, the same in shape. For snapshots and pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Talk:
    """A history and what is typed. turns: question and answers, the last answer is the one that is shown.

    others: titles of other conversations, the oldest first. scored: tokens of an answer with alternatives.
    """

    language: str
    system: str
    turns: tuple[tuple[str, tuple[str, ...]], ...]
    others: tuple[str, ...]
    tags: tuple[str, ...]
    search: str
    draft: str
    prompt: str
    answers: tuple[str, ...]
    scored: tuple[dict[str, float], ...]


ENGLISH = Talk(
    language="en",
    system="You answer briefly.",
    turns=(
        (
            "Which files fill my disk?",
            (
                "Run `du` over your home folder and sort what it says.",
                "Ask **`du`**, and sort by size:\n\n"
                "```sh\ndu -ah ~ | sort -rh | head -n 20   # the twenty largest\n```\n\n"
                "What usually turns out to be large:\n\n"
                "1. caches, in `~/.cache`\n2. old downloads\n   - images of disks\n   - archives that were unpacked\n"
                "3. model files 🙂\n\n"
                "| folder | grows | safe to delete |\n|---|--:|---|\n| `~/.cache` | 2 GB a month | yes |\n"
                "| `~/Downloads` | by you | look first |\n| `/var/log` | 100 MB | 日志, with care |",
            ),
        ),
        (
            "And how long does reading 40 GB take?",
            (
                "<think>\nA fast disk reads 7 GB/s, one over SATA 0.55 GB/s. So 40 / 7 is about 6 s.\n</think>\n"
                "At speed $v$ it takes $t = \\frac{40\\,\\mathrm{GB}}{v}$:\n\n"
                "> about **6 s** from NVMe, more than a minute over SATA.",
            ),
        ),
    ),
    others=("Draft of a letter to the landlord", "Rust: borrow of a moved value", "Packing list for the mountains"),
    tags=("disk", "linux"),
    search="cache",
    draft="What about /var/lib/docker?",
    prompt="Explain a hash table in two sentences.",
    answers=(
        "A hash table keeps values in *buckets*: a function of the key says which one. So looking something up takes "
        "the same time however much there is.",
        "It is an array whose index is computed from a key.\n\n- quick to look up\n- no order",
        "Think of a cloakroom: your ticket is the key, the hook the bucket.",
    ),
    scored=(
        {"At": 0.62, "It": 0.21, "With": 0.08, "From": 0.05, "Reading": 0.02},
        {" speed": 0.44, " a": 0.40, " the": 0.11, " full": 0.02, " best": 0.01},
        {" v": 0.97, " x": 0.01, " s": 0.01},
        {" it": 0.88, " reading": 0.07, " that": 0.03},
        {" takes": 0.93, " would": 0.04, " needs": 0.02},
        {" about": 0.31, " some": 0.33, " roughly": 0.22, " only": 0.06, " around": 0.05},
        {" six": 0.74, " five": 0.12, " 6": 0.11, " seven": 0.02},
        {" seconds": 0.99, " minutes": 0.005},
        {".": 0.81, " from": 0.12, ",": 0.05},
    ),
)
CHINESE = Talk(
    language="zh",
    system="回答要简短。",
    turns=(
        (
            "哪些文件占满了我的硬盘？",
            (
                "用 `du` 查看主目录，再按大小排序。",
                "用 **`du`** 按大小排序：\n\n"
                "```sh\ndu -ah ~ | sort -rh | head -n 20   # 最大的二十个\n```\n\n"
                "通常比较大的是：\n\n"
                "1. 缓存，在 `~/.cache`\n2. 旧的下载文件\n   - 磁盘镜像\n   - 已经解压的压缩包\n"
                "3. 模型文件 🙂\n\n"
                "| 文件夹 | 增长 | 可否删除 |\n|---|--:|---|\n| `~/.cache` | 每月 2 GB | 可以 |\n"
                "| `~/Downloads` | 取决于你 | 先看看 |\n| `/var/log` | 100 MB | 小心，with care |",
            ),
        ),
        (
            "读取 40 GB 要多久？",
            (
                "<think>\n快的硬盘每秒读 7 GB，SATA 每秒 0.55 GB，所以大约 6 秒。\n</think>\n"
                "速度为 $v$ 时，需要 $t = \\frac{40\\,\\mathrm{GB}}{v}$：\n\n"
                "> NVMe 大约 **6 秒**，SATA 超过一分钟。",
            ),
        ),
    ),
    others=("给房东的信的草稿", "Rust：使用了已移动的值", "登山的行李清单"),
    tags=("硬盘", "linux"),
    search="缓存",
    draft="那 /var/lib/docker 呢？",
    prompt="用两句话解释哈希表。",
    answers=(
        "哈希表把值放进*桶*里，由键的函数决定是哪一个。所以无论有多少数据，查找所需的时间都一样。",
        "它是一个数组，下标由键计算得出。\n\n- 查找快\n- 没有顺序",
        "想象一个衣帽间：号码牌是键，挂钩是桶。",
    ),
    scored=(
        {"速度": 0.62, "大约": 0.21, "需要": 0.08, "如果": 0.05, "从": 0.02},
        {"为": 0.44, "是": 0.40, "越": 0.11, "最": 0.02, "快": 0.01},
        {" v": 0.97, " x": 0.01, " s": 0.01},
        {"时，": 0.88, "，": 0.07, "的": 0.03},
        {"需要": 0.93, "要": 0.04, "用": 0.02},
        {"大约": 0.31, "差不多": 0.33, "约": 0.22, "只": 0.06, "就": 0.05},
        {"六": 0.74, "五": 0.12, "6": 0.11, "七": 0.02},
        {"秒": 0.99, "分钟": 0.005},
        {"。": 0.81, "钟": 0.12, "，": 0.05},
    ),
)
ARABIC = Talk(
    language="en",
    system="أجب باختصار.",
    turns=(
        (
            "ما الملفات التي تملأ القرص؟",
            (
                "استعمل `du` ثم رتّب النتائج.",
                "استعمل **`du`** ورتّب حسب الحجم:\n\n"
                "```sh\ndu -ah ~ | sort -rh | head -n 20   # أكبر عشرين\n```\n\n"
                "الكبير عادةً:\n\n"
                "1. الذاكرة المؤقتة في `~/.cache`\n2. التنزيلات القديمة\n   - صور الأقراص\n   - ملفات مضغوطة\n"
                "3. ملفات النماذج 🙂\n\n"
                "| المجلد | النمو | الحذف |\n|---|--:|---|\n| `~/.cache` | 2 GB | نعم |\n"
                "| `~/Downloads` | حسبك | انظر أولًا |\n| `/var/log` | 100 MB | بحذر |",
            ),
        ),
        (
            "كم يستغرق قراءة 40 GB؟",
            (
                "<think>\nالقرص السريع يقرأ 7 GB/s، إذن نحو 6 ثوانٍ.\n</think>\n"
                "بسرعة $v$ يستغرق $t = \\frac{40\\,\\mathrm{GB}}{v}$:\n\n"
                "> نحو **6 ثوانٍ** من NVMe، وأكثر من دقيقة عبر SATA.",
            ),
        ),
    ),
    others=("مسودة رسالة إلى المالك", "سؤال عن Rust", "قائمة أمتعة الجبل"),
    tags=("قرص", "linux"),
    search="الذاكرة",
    draft="وماذا عن /var/lib/docker؟",
    prompt="اشرح جدول التجزئة في جملتين.",
    answers=(
        "جدول التجزئة يحفظ القيم في *دلاء* تحددها دالة المفتاح. لذلك لا يتغير وقت البحث مهما كثرت البيانات.",
        "هو مصفوفة يُحسب فهرسها من المفتاح.\n\n- بحث سريع\n- بلا ترتيب",
        "تخيل غرفة معاطف: التذكرة هي المفتاح والخطاف هو الدلو.",
    ),
    scored=(
        {"بسرعة": 0.62, "نحو": 0.21, "مع": 0.08, "من": 0.05, "القراءة": 0.02},
        {" v": 0.97, " x": 0.01, " s": 0.01},
        {" يستغرق": 0.44, " تستغرق": 0.40, " نحتاج": 0.11},
        {" نحو": 0.31, " حوالي": 0.33, " قرابة": 0.22, " فقط": 0.06, " تقريبا": 0.05},
        {" ست": 0.74, " خمس": 0.12, " 6": 0.11, " سبع": 0.02},
        {" ثوان": 0.99, " دقائق": 0.005},
        {".": 0.81, " من": 0.12, "،": 0.05},
    ),
)
TALKS = {"English": ENGLISH, "Chinese": CHINESE, "Arabic": ARABIC}
